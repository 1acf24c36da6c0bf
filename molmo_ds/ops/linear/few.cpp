// A few rows times a weight that lies in memory column by column, read once: x [R, K], weight [K, N].

#include "cpu_vector.h"

// rows of the weight that are read side by side: an Intel Xeon fetches 32 ahead, AMD's Zen no more than 16 (10 GB/s of 20
// with 32, measured on two kinds of EPYC)
#if defined(__AVX512F__) && !defined(__znver3__) && !defined(__znver4__) && !defined(__znver5__)
constexpr int DEPTH = 32;
#else
constexpr int DEPTH = 16;
#endif
constexpr int AHEAD = 64;  // numbers further on in a row that are fetched meanwhile
constexpr int MOST = 12;   // rows of x whose sums fit into the registers

// adds x[:, depth] @ weight[depth] to R rows and C vectors of columns
template <int R, int C>
static inline void tile(const float* x, const float* weight, const float* ahead, float* out, int64_t depth,
                        int64_t inputs, int64_t outputs) {
    Vector sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = load(out + r * outputs + c * WIDTH);
    auto add = [&](int64_t k) {
        Vector here[C];
        for (int c = 0; c < C; c++) {
            here[c] = load(weight + k * outputs + c * WIDTH);
            __builtin_prefetch(ahead + k * outputs + c * WIDTH);
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] += x[r * inputs + k] * here[c];
    };
    if (depth == DEPTH)
        for (int k = 0; k < DEPTH; k++) add(k);
    else
        for (int64_t k = 0; k < depth; k++) add(k);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(out + r * outputs + c * WIDTH, sums[r][c]);
}

// the last columns, fewer than a vector
template <int R>
static inline void rest(const float* x, const float* weight, float* out, int64_t depth, int64_t inputs, int64_t outputs,
                        int64_t columns) {
    for (int r = 0; r < R; r++) {
        Vector sums = load(out + r * outputs, columns);
        for (int64_t k = 0; k < depth; k++) sums += x[r * inputs + k] * load(weight + k * outputs, columns);
        store(out + r * outputs, sums, columns);
    }
}

template <int R>
static void columns(const float* x, const float* weight, const float* bias, float* out, int64_t inputs, int64_t outputs,
                    int64_t begin, int64_t end) {
    for (int r = 0; r < R; r++)
        for (int64_t n = begin; n < end; n++) out[r * outputs + n] = bias ? bias[n] : 0;
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        int64_t depth = inputs - k < DEPTH ? inputs - k : DEPTH;
        const float* from = weight + k * outputs;
        // what is read some tiles later: further on in these rows, or at the begin of the next ones
        auto ahead = [&](int64_t n) {
            return n + AHEAD < end ? from + n + AHEAD : from + depth * outputs + n + AHEAD - (end - begin);
        };
        int64_t n = begin;
        for (; n + across(R) * WIDTH <= end; n += across(R) * WIDTH)
            tile<R, across(R)>(x + k, from + n, ahead(n), out + n, depth, inputs, outputs);
        for (; n + WIDTH <= end; n += WIDTH)
            tile<R, 1>(x + k, from + n, ahead(n), out + n, depth, inputs, outputs);
        if (n < end) rest<R>(x + k, from + n, out + n, depth, inputs, outputs, end - n);
    }
}

typedef void Columns(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t);

template <int... R>
static Columns* of_rows(int64_t rows, std::integer_sequence<int, R...>) {
    static Columns* const table[] = {columns<R + 1>...};
    return table[rows - 1];
}

// bias [N] or null
extern "C" void few_rows(const float* x, const float* weight, const float* bias, float* out, int64_t rows,
                         int64_t inputs, int64_t outputs, int64_t threads) {
    Columns* run = of_rows(rows, std::make_integer_sequence<int, MOST>());
    int64_t vectors = (outputs + 2 * WIDTH - 1) / (2 * WIDTH);
    if (inputs * outputs < FEW) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < threads; part++) {
        int64_t begin = vectors * part / threads * 2 * WIDTH;
        int64_t end = vectors * (part + 1) / threads * 2 * WIDTH;
        run(x, weight, bias, out, inputs, outputs, begin, end < outputs ? end : outputs);
    }
}
