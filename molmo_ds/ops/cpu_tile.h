// Tiles of a product, whose sums stay in the registers, and the numbers that they read.

#pragma once

#include <new>

#include "cpu_vector.h"

constexpr int TALL = REGISTERS == 32 ? 12 : 6;  // rows of a tile of two vectors, whose sums fit into the registers
constexpr int64_t PANEL = 2 * WIDTH;            // columns of such a tile

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr std::align_val_t LINE{64};  // of a cache; a vector across two of them is read twice

// numbers that begin with a line, not set
struct Numbers {
    float* data;
    explicit Numbers(int64_t count) : data(new (LINE) float[count]) {}
    Numbers(const Numbers&) = delete;
    ~Numbers() { ::operator delete[](data, LINE); }
};

// done beside a tile's steps
struct Nothing {
    void operator()(int64_t) const {}
};

// out[R, C vectors] = (add ? out : 0) + a[R, steps] times b[steps, C vectors]; the sums begin with `first` or 0, and
// `also` is done at each step (in place, so that steps between rows that the compiler knows cost nothing)
template <int R, int C, typename Also = Nothing>
__attribute__((always_inline)) static inline void tile(const float* a, int64_t a_row, int64_t a_step, const float* b,
                                                       int64_t b_step, float* out, int64_t out_row, int64_t steps,
                                                       bool add, const float* first = nullptr, Also also = {}) {
    Vector sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = first ? load(first + c * WIDTH) : Vector{};
    for (int64_t k = 0; k < steps; k++) {
        Vector here[C];
        for (int c = 0; c < C; c++) here[c] = load(b + k * b_step + c * WIDTH);
        also(k);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] += a[r * a_row + k * a_step] * here[c];
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            float* to = out + r * out_row + c * WIDTH;
            store(to, add ? load(to) + sums[r][c] : sums[r][c]);
        }
}

// lanes of a and b in turn: of their first halves or, for 1, their second ones
template <int half, int... lane>
static inline Vector zip(Vector a, Vector b, std::integer_sequence<int, lane...>) {
    return __builtin_shuffle(a, b, Integers{(half * WIDTH / 2 + lane / 2 + lane % 2 * WIDTH)...});
}

// WIDTH numbers of WIDTH rows to columns
static inline void transpose(const float* from, int64_t row, float* to, int64_t to_row) {
    constexpr auto LANES = std::make_integer_sequence<int, WIDTH>();
    Vector x[WIDTH], y[WIDTH];
    for (int i = 0; i < WIDTH; i++) x[i] = load(from + i * row);
    for (int n = 1; n < WIDTH; n *= 2) {
        for (int i = 0; i < WIDTH / 2; i++) {
            y[2 * i] = zip<0>(x[i], x[i + WIDTH / 2], LANES);
            y[2 * i + 1] = zip<1>(x[i], x[i + WIDTH / 2], LANES);
        }
        for (int i = 0; i < WIDTH; i++) x[i] = y[i];
    }
    for (int i = 0; i < WIDTH; i++) store(to + i * to_row, x[i]);
}
