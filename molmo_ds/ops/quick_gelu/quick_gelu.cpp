// x * sigmoid(1.702 x), number by number.

#include "cpu_vector.h"

constexpr int64_t PART = 4096;  // numbers that one thread takes at a time
constexpr float SLOPE = 1.702f;

extern "C" void quick_gelu(const float* x, float* out, int64_t numbers, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (numbers > FEW)
    for (int64_t first = 0; first < numbers; first += PART) {
        int64_t last = numbers - first < PART ? numbers - first : PART;
        each(last, [&](int64_t i, auto count) {
            Vector here = load(x + first + i, count);
            store(out + first + i, here * sigmoid(here * SLOPE), count);
        });
    }
}

extern "C" void quick_gelu_backward(const float* of_out, const float* x, float* of_x, int64_t numbers,
                                    int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (numbers > FEW)
    for (int64_t first = 0; first < numbers; first += PART) {
        int64_t last = numbers - first < PART ? numbers - first : PART;
        each(last, [&](int64_t i, auto count) {
            Vector slope = slope_of_silu(load(x + first + i, count) * SLOPE);
            store(of_x + first + i, load(of_out + first + i, count) * slope, count);
        });
    }
}
