// AdamW's update, number by number.

#include <cmath>

#include "cpu_vector.h"

static inline Vector root_of(Vector x) {
    for (int i = 0; i < WIDTH; i++) x[i] = std::sqrt(x[i]);
    return x;
}

// kept: what is left of a weight; of_mean, of_square: what the new number counts in the moments; size: of a step;
// root: that the second moment's is divided by
extern "C" void adamw(float* weight, const float* grad, float* mean, float* square, int64_t numbers, float divisor,
                      float kept, float of_mean, float beta, float of_square, float size, float root, float eps,
                      int64_t threads) {
    each_number(numbers, threads, [&](int64_t i, auto count) {
        Vector slope = load(grad + i, count) / divisor;
        Vector first = load(mean + i, count);
        first += of_mean * (slope - first);
        Vector second = load(square + i, count) * beta + of_square * (slope * slope);
        store(mean + i, first, count);
        store(square + i, second, count);
        store(weight + i, load(weight + i, count) * kept - size * (first / (root_of(second) / root + eps)), count);
    });
}
