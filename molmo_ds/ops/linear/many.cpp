// Many rows times a matrix: out [rows, columns] = a [rows, inner] times b [columns, inner] transposed.
//
// What is multiplied at a time lies near: DEEP steps of the sums of some columns of b, copied into panels of two vectors
// side by side (second cache), and a tile's rows of a (first cache), copied too where their steps are not neighbours or
// the first cache could not hold them. Where it can be, b is copied by the first tiles that read it: memory is waited for
// while they multiply.
// A number is summed up step by step within CHAIN of them, part after part: its bits depend neither on how many rows or
// columns there are nor on threads.

#include "cpu_tile.h"

constexpr int64_t DEEP = 384;         // steps
constexpr int64_t NEAR = 128 * 1024;  // numbers of b, half a megabyte
constexpr int64_t GROUP = 8 * TALL;   // rows that are copied at a time
constexpr int64_t SET = 1024;         // numbers between those that share a place of the first cache
constexpr int64_t CHAIN = 96;         // steps summed up one after the other; longer sums round more than MKL's
constexpr int64_t AHEAD = 8;          // steps further on that are fetched meanwhile

struct Matrix {
    const float* data;
    int64_t row, step;
    Matrix at(int64_t r, int64_t k) const { return Matrix{data + r * row + k * step, row, step}; }
};

// columns of b to panels [steps, PANEL], zeros after the last one
static void pack(Matrix b, int64_t columns, int64_t steps, float* to) {
    for (int64_t n = 0; n < columns; n += PANEL, to += steps * PANEL) {
        const float* from = b.data + n * b.row;
        int64_t here = smaller(columns - n, PANEL), k = 0;
        if (b.step == 1 && here == PANEL)
            for (; k + WIDTH <= steps; k += WIDTH)
                for (int64_t i = 0; i < PANEL; i += WIDTH)
                    transpose(from + i * b.row + k, b.row, to + k * PANEL + i, PANEL);
        for (; k < steps; k++)
            for (int64_t i = 0; i < PANEL; i++) to[k * PANEL + i] = i < here ? from[i * b.row + k * b.step] : 0;
    }
}

// rows of a, whose steps are not neighbours, to strips [steps, TALL]; their sums are added to `sums`, if it is there
static void turn(Matrix a, int64_t rows, int64_t steps, float* to, float* sums) {
    int64_t whole = a.row == 1 ? rows / TALL * TALL : 0;
    for (int64_t begin = 0; begin < steps; begin += CHAIN) {
        float total[GROUP] = {};
        for (int64_t k = begin; k < smaller(steps, begin + CHAIN); k++) {
            const float* from = a.data + k * a.step;
            for (int64_t r = 0; r < whole; r += WIDTH) __builtin_prefetch(from + AHEAD * a.step + r);
            for (int64_t r = 0; r < whole; r += TALL) memcpy(to + r * steps + k * TALL, from + r, TALL * sizeof(float));
            for (int64_t r = whole; r < rows; r++)
                to[r / TALL * TALL * steps + k * TALL + r % TALL] = from[r * a.row];
            for (int64_t r = 0; sums && r < rows; r++) total[r] += from[r * a.row];
        }
        for (int64_t r = 0; sums && r < rows; r++) sums[r] += total[r];
    }
}

// rows of a, so far apart that the first cache cannot hold those of a tile, side by side
static void bring(Matrix a, int64_t rows, int64_t steps, float* to) {
    for (int64_t r = 0; r < rows; r++) {
        const float* from = a.data + r * a.row;
        for (int64_t k = 0; k < steps; k += WIDTH) __builtin_prefetch(from + 2 * a.row + k);
        memcpy(to + r * steps, from, steps * sizeof(float));
    }
}

// panels of b, and where they are to be read from and copied first; null = they are there
struct Panels {
    float* data;
    Matrix from;
};

// R rows of out = (add ? out : 0) + a [R, steps] times b's panels + bias, if there is one
template <int R>
static void strip(Matrix a, Panels b, const float* bias, float* out, int64_t out_row, int64_t steps, int64_t columns,
                  bool add) {
    int64_t n = 0;
    for (; n + PANEL <= columns; n += PANEL, b.data += steps * PANEL) {
        for (int r = 0; r < R; r++)
            for (int64_t i = 0; i < PANEL; i += WIDTH) __builtin_prefetch(out + r * out_row + n + i, 1);
        for (int64_t k = 0; k < steps; k += CHAIN) {
            const float* of_a = a.data + k * a.step;
            float* panel = b.data + k * PANEL;
            int64_t here = smaller(steps - k, CHAIN);
            const float* first = bias && !k ? bias + n : nullptr;
            if (!b.from.data) {
                tile<R, 2>(of_a, a.row, a.step, panel, PANEL, out + n, out_row, here, add || k, first);
                continue;
            }
            Matrix from = b.from.at(n, k);
            auto copy = [&](int64_t step) {
                memcpy(panel + step * PANEL, from.data + step * from.step, PANEL * sizeof(float));
                __builtin_prefetch(from.data + (step + AHEAD) * from.step);
                __builtin_prefetch(from.data + (step + AHEAD) * from.step + WIDTH);
            };
            tile<R, 2>(of_a, a.row, a.step, from.data, from.step, out + n, out_row, here, add || k, first, copy);
        }
    }
    if (n == columns) return;
    // the last columns beside the result, for a tile writes a whole panel
    alignas(64) float last[R * PANEL], begin[PANEL] = {};
    if (bias) memcpy(begin, bias + n, (columns - n) * sizeof(float));
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < PANEL; i++) last[r * PANEL + i] = add && n + i < columns ? out[r * out_row + n + i] : 0;
    for (int64_t k = 0; k < steps; k += CHAIN)
        tile<R, 2>(a.data + k * a.step, a.row, a.step, b.data + k * PANEL, PANEL, last, PANEL, smaller(steps - k, CHAIN),
                   add || k, k ? nullptr : begin);
    for (int r = 0; r < R; r++) memcpy(out + r * out_row + n, last + r * PANEL, (columns - n) * sizeof(float));
}

typedef void Strip(Matrix, Panels, const float*, float*, int64_t, int64_t, int64_t, bool);

template <int... R>
static Strip* of_rows(int64_t rows, std::integer_sequence<int, R...>) {
    static Strip* const table[] = {strip<R + 1>...};
    return table[rows - 1];
}

struct Product {
    Matrix a, b;
    const float* bias;  // or null
    float* out;
    float* sums;  // of a's rows, or null; where a's steps are not neighbours
    int64_t rows, inner, columns, out_row;
    bool add;  // to what is in out
};

// this thread's copies, kept for the next product
struct Copies {
    Numbers of_a{GROUP * DEEP}, of_b{NEAR};
};

// steps k to k + steps of some columns
static void part(const Product& x, const Copies& copies, int64_t n, int64_t columns, int64_t k, int64_t steps) {
    Matrix b = x.b.at(n, k);
    float* panels = copies.of_b.data;
    bool whole = b.row == 1;  // a panel's numbers of a step are neighbours
    int64_t left = whole ? columns / PANEL * PANEL : 0;
    pack(b.at(left, 0), columns - left, steps, panels + left * steps);
    const float* bias = x.bias && k == 0 ? x.bias + n : nullptr;
    for (int64_t row = 0; row < x.rows; row += TALL) {
        Matrix a = x.a.at(row, k);
        if (a.step == 1 && a.row % SET == 0 && columns > PANEL) {
            bring(a, smaller(x.rows - row, TALL), steps, copies.of_a.data);
            a = Matrix{copies.of_a.data, steps, 1};
        } else if (a.step != 1) {
            int64_t of_group = row % GROUP;
            float* sums = x.sums && n == 0 ? x.sums + row : nullptr;
            if (of_group == 0) turn(a, smaller(x.rows - row, GROUP), steps, copies.of_a.data, sums);
            a = Matrix{copies.of_a.data + of_group * steps, 1, TALL};
        }
        Panels here{panels, {whole && row == 0 ? b.data : nullptr, b.row, b.step}};
        Strip* run = of_rows(smaller(x.rows - row, TALL), std::make_integer_sequence<int, TALL>());
        run(a, here, bias, x.out + row * x.out_row + n, x.out_row, steps, columns, x.add || k > 0);
    }
}

static void multiply(const Product& x) {
    static thread_local Copies copies;
    int64_t parts = (x.inner + DEEP - 1) / DEEP, deep = (x.inner + parts - 1) / parts;
    int64_t wide = NEAR / deep / PANEL * PANEL;
    for (int64_t n = 0; n < x.columns; n += wide)
        for (int64_t k = 0; k < x.inner; k += deep)
            part(x, copies, n, smaller(x.columns - n, wide), k, smaller(x.inner - k, deep));
}

// bias [columns] or null; out lies row by row, and is added to if `add`; sums [rows] of a over its steps, which must not
// be neighbours, are added to `sums`, if it is there
extern "C" void many_rows(const float* a, const float* b, const float* bias, float* out, float* sums, int64_t a_row,
                          int64_t a_step, int64_t b_row, int64_t b_step, int64_t rows, int64_t inner, int64_t columns,
                          int64_t add, int64_t threads) {
    bool tall = rows >= columns;
    int64_t size = tall ? TALL : PANEL, pieces = ((tall ? rows : columns) + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; thread++) {
        int64_t begin = pieces * thread / threads * size;
        int64_t end = smaller(pieces * (thread + 1) / threads * size, tall ? rows : columns);
        Product x{{a, a_row, a_step}, {b, b_row, b_step}, bias, out, sums, rows, inner, columns, columns, add != 0};
        if (tall) {
            x.a = x.a.at(begin, 0);
            x.out += begin * columns;
            x.sums = sums ? sums + begin : nullptr;
            x.rows = end - begin;
        } else {
            x.b = x.b.at(begin, 0);
            x.bias = bias ? bias + begin : nullptr;
            x.out += begin;
            x.sums = begin == 0 ? sums : nullptr;
            x.columns = end - begin;
        }
        if (begin < end) multiply(x);
    }
}
