// x * sigmoid(1.702 x), number by number.

#include "cpu_vector.h"

constexpr float SLOPE = 1.702f;

extern "C" void quick_gelu(const float* x, float* out, int64_t numbers, int64_t threads) {
    each_number(numbers, threads, [&](int64_t i, auto count) {
        Vector here = load(x + i, count);
        store(out + i, here * sigmoid(here * SLOPE), count);
    });
}

extern "C" void quick_gelu_backward(const float* of_out, const float* x, float* of_x, int64_t numbers,
                                    int64_t threads) {
    each_number(numbers, threads, [&](int64_t i, auto count) {
        Vector slope = slope_of_silu(load(x + i, count) * SLOPE);
        store(of_x + i, load(of_out + i, count) * slope, count);
    });
}
