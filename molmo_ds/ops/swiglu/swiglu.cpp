// The gated activation silu(gate) * up, number by number.

#include "cpu_vector.h"

extern "C" void swiglu(const float* gate, const float* up, float* out, int64_t numbers, int64_t threads) {
    each_number(numbers, threads, [&](int64_t i, auto count) {
        Vector x = load(gate + i, count);
        store(out + i, x * sigmoid(x) * load(up + i, count), count);
    });
}

extern "C" void swiglu_backward(const float* of_out, const float* gate, const float* up, float* of_gate, float* of_up,
                                int64_t numbers, int64_t threads) {
    each_number(numbers, threads, [&](int64_t i, auto count) {
        Vector grad = load(of_out + i, count);
        Vector x = load(gate + i, count);
        store(of_up + i, grad * (x * sigmoid(x)), count);
        store(of_gate + i, grad * load(up + i, count) * slope_of_silu(x), count);
    });
}
