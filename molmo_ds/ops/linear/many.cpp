// Many rows times a matrix: out [rows, columns] = a [rows, inner] times b [columns, inner] transposed.
//
// What is multiplied at a time lies near: DEEP steps of the sums of some columns of b, copied into panels of two vectors
// side by side (second cache), and a tile's rows of a (first cache), copied too where their steps are not neighbours.
// A number is summed up step by step within CHAIN of them, part after part: its bits depend neither on how many rows or
// columns there are nor on threads.

#include "cpu_tile.h"

constexpr int64_t DEEP = 384;         // steps
constexpr int64_t NEAR = 128 * 1024;  // numbers of b, half a megabyte
constexpr int64_t GROUP = 8 * TALL;   // rows that are copied at a time
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
        if (b.row == 1 && here == PANEL)
            for (; k < steps; k++) {
                __builtin_prefetch(from + (k + AHEAD) * b.step);
                __builtin_prefetch(from + (k + AHEAD) * b.step + WIDTH);
                memcpy(to + k * PANEL, from + k * b.step, PANEL * sizeof(float));
            }
        if (b.step == 1 && here == PANEL)
            for (; k + WIDTH <= steps; k += WIDTH)
                for (int64_t i = 0; i < PANEL; i += WIDTH)
                    transpose(from + i * b.row + k, b.row, to + k * PANEL + i, PANEL);
        for (; k < steps; k++)
            for (int64_t i = 0; i < PANEL; i++) to[k * PANEL + i] = i < here ? from[i * b.row + k * b.step] : 0;
    }
}

// rows of a, whose steps are not neighbours, to strips [steps, TALL]
static void turn(Matrix a, int64_t rows, int64_t steps, float* to) {
    int64_t whole = a.row == 1 ? rows / TALL : 0;
    for (int64_t k = 0; k < steps; k++) {
        const float* from = a.data + k * a.step;
        for (int64_t r = 0; r < whole * TALL; r += WIDTH) __builtin_prefetch(from + AHEAD * a.step + r);
        for (int64_t i = 0; i < whole; i++)
            memcpy(to + (i * steps + k) * TALL, from + i * TALL, TALL * sizeof(float));
    }
    for (int64_t r = whole * TALL; r < rows; r++)
        for (int64_t k = 0; k < steps; k++)
            to[(r / TALL * steps + k) * TALL + r % TALL] = a.data[r * a.row + k * a.step];
}

// R rows of out = (add ? out : 0) + a [R, steps] times b's panels + bias, if there is one
template <int R>
static void strip(Matrix a, const float* b, const float* bias, float* out, int64_t out_row, int64_t steps,
                  int64_t columns, bool add) {
    int64_t n = 0;
    for (; n + PANEL <= columns; n += PANEL, b += steps * PANEL) {
        for (int r = 0; r < R; r++)
            for (int64_t i = 0; i < PANEL; i += WIDTH) __builtin_prefetch(out + r * out_row + n + i, 1);
        for (int64_t k = 0; k < steps; k += CHAIN)
            tile<R, 2>(a.data + k * a.step, a.row, a.step, b + k * PANEL, PANEL, out + n, out_row,
                       smaller(steps - k, CHAIN), add || k, bias && !k ? bias + n : nullptr);
    }
    if (n == columns) return;
    // the last columns beside the result, for a tile writes a whole panel
    alignas(64) float last[R * PANEL], begin[PANEL] = {};
    if (bias) memcpy(begin, bias + n, (columns - n) * sizeof(float));
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < PANEL; i++) last[r * PANEL + i] = add && n + i < columns ? out[r * out_row + n + i] : 0;
    for (int64_t k = 0; k < steps; k += CHAIN)
        tile<R, 2>(a.data + k * a.step, a.row, a.step, b + k * PANEL, PANEL, last, PANEL, smaller(steps - k, CHAIN),
                   add || k, k ? nullptr : begin);
    for (int r = 0; r < R; r++) memcpy(out + r * out_row + n, last + r * PANEL, (columns - n) * sizeof(float));
}

typedef void Strip(Matrix, const float*, const float*, float*, int64_t, int64_t, int64_t, bool);

template <int... R>
static Strip* of_rows(int64_t rows, std::integer_sequence<int, R...>) {
    static Strip* const table[] = {strip<R + 1>...};
    return table[rows - 1];
}

struct Product {
    Matrix a, b;
    const float* bias;  // or null
    float* out;
    int64_t rows, inner, columns, out_row;
    bool add;  // to what is in out
};

// this thread's copies, kept for the next product
struct Copies {
    Numbers of_a{GROUP * DEEP}, of_b{NEAR};
};

// steps k to k + steps of some rows and columns: b's are in copies.of_b
static void part(const Product& x, const Copies& copies, int64_t row, int64_t rows, int64_t n, int64_t columns,
                 int64_t k, int64_t steps) {
    Matrix group = x.a.at(row, k);
    if (x.a.step != 1) turn(group, rows, steps, copies.of_a.data);
    for (int64_t r = 0; r < rows; r += TALL) {
        int64_t count = smaller(rows - r, TALL);
        float* out = x.out + (row + r) * x.out_row + n;
        const float* bias = x.bias && k == 0 ? x.bias + n : nullptr;
        Matrix a = x.a.step == 1 ? group.at(r, 0) : Matrix{copies.of_a.data + r * steps, 1, TALL};
        Strip* run = of_rows(count, std::make_integer_sequence<int, TALL>());
        run(a, copies.of_b.data, bias, out, x.out_row, steps, columns, x.add || k > 0);
    }
}

static void multiply(const Product& x) {
    static thread_local Copies copies;
    int64_t parts = (x.inner + DEEP - 1) / DEEP, deep = (x.inner + parts - 1) / parts;
    int64_t wide = NEAR / deep / PANEL * PANEL;
    for (int64_t n = 0; n < x.columns; n += wide) {
        int64_t columns = smaller(x.columns - n, wide);
        for (int64_t k = 0; k < x.inner; k += deep) {
            int64_t steps = smaller(x.inner - k, deep);
            pack(x.b.at(n, k), columns, steps, copies.of_b.data);
            for (int64_t row = 0; row < x.rows; row += GROUP)
                part(x, copies, row, smaller(x.rows - row, GROUP), n, columns, k, steps);
        }
    }
}

// bias [columns] or null; out lies row by row, and is added to if `add`
extern "C" void many_rows(const float* a, const float* b, const float* bias, float* out, int64_t a_row, int64_t a_step,
                          int64_t b_row, int64_t b_step, int64_t rows, int64_t inner, int64_t columns, int64_t add,
                          int64_t threads) {
    bool tall = rows >= columns;
    int64_t size = tall ? TALL : PANEL, pieces = ((tall ? rows : columns) + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t thread = 0; thread < threads; thread++) {
        int64_t begin = pieces * thread / threads * size;
        int64_t end = smaller(pieces * (thread + 1) / threads * size, tall ? rows : columns);
        Product x{{a, a_row, a_step}, {b, b_row, b_step}, bias, out, rows, inner, columns, columns, add != 0};
        if (tall) {
            x.a = x.a.at(begin, 0);
            x.out += begin * columns;
            x.rows = end - begin;
        } else {
            x.b = x.b.at(begin, 0);
            x.bias = bias ? bias + begin : nullptr;
            x.out += begin;
            x.columns = end - begin;
        }
        if (begin < end) multiply(x);
    }
}
