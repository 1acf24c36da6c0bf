// The gated activation silu(gate) * up, number by number.

#include "cpu_vector.h"

constexpr int64_t PART = 4096;  // numbers that one thread takes at a time

extern "C" void swiglu(const float* gate, const float* up, float* out, int64_t numbers, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (numbers > FEW)
    for (int64_t first = 0; first < numbers; first += PART) {
        int64_t last = numbers - first < PART ? numbers - first : PART;
        each(last, [&](int64_t i, auto count) {
            Vector x = load(gate + first + i, count);
            store(out + first + i, x * sigmoid(x) * load(up + first + i, count), count);
        });
    }
}

extern "C" void swiglu_backward(const float* of_out, const float* gate, const float* up, float* of_gate, float* of_up,
                                int64_t numbers, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (numbers > FEW)
    for (int64_t first = 0; first < numbers; first += PART) {
        int64_t last = numbers - first < PART ? numbers - first : PART;
        each(last, [&](int64_t i, auto count) {
            Vector grad = load(of_out + first + i, count);
            Vector x = load(gate + first + i, count);
            store(of_up + first + i, grad * (x * sigmoid(x)), count);
            store(of_gate + first + i, grad * load(up + first + i, count) * slope_of_silu(x), count);
        });
    }
}
