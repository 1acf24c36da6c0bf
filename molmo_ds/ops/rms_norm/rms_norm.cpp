// Root-mean-square normalisation over rows of `width` numbers, times a weight.

#include <cmath>
#include <vector>

#include "cpu_vector.h"

constexpr int64_t BLOCK = 64;  // rows whose share of the weight's gradient is summed together

// out[r] = x[r] * scale[r] * weight, scale[r] = 1 / sqrt(mean(x[r]^2) + eps)
extern "C" void rms_norm(const float* x, const float* weight, float* out, float* scale, int64_t rows, int64_t width,
                         float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > FEW)
    for (int64_t row = 0; row < rows; row++) {
        const float* from = x + row * width;
        float* to = out + row * width;
        Vector squares = {};
        each(width, [&](int64_t i, auto count) {
            Vector here = load(from + i, count);
            squares += here * here;
        });
        float factor = 1.0f / std::sqrt(sum(squares) / width + eps);
        scale[row] = factor;
        each(width, [&](int64_t i, auto count) {
            store(to + i, load(from + i, count) * factor * load(weight + i, count), count);
        });
    }
}

// the gradients of x and of the weight
extern "C" void rms_norm_backward(const float* of_out, const float* x, const float* weight, const float* scale,
                                  float* of_x, float* of_weight, int64_t rows, int64_t width, int64_t threads) {
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    std::vector<float> parts(blocks * width);
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > FEW)
    for (int64_t block = 0; block < blocks; block++) {
        float* part = parts.data() + block * width;
        int64_t end = (block + 1) * BLOCK < rows ? (block + 1) * BLOCK : rows;
        for (int64_t row = block * BLOCK; row < end; row++) {
            const float* of = of_out + row * width;
            const float* from = x + row * width;
            float* to = of_x + row * width;
            float factor = scale[row];
            Vector products = {};
            each(width, [&](int64_t i, auto count) {
                Vector grad = load(of + i, count);
                Vector here = load(from + i, count);
                products += grad * load(weight + i, count) * here;
                store(part + i, load(part + i, count) + grad * (here * factor), count);
            });
            float shared = sum(products) * factor * factor * factor / width;
            each(width, [&](int64_t i, auto count) {
                Vector grad = load(of + i, count) * load(weight + i, count);
                store(to + i, grad * factor - load(from + i, count) * shared, count);
            });
        }
    }
    each(width, [&](int64_t i, auto count) {
        Vector total = {};
        for (int64_t block = 0; block < blocks; block++) total += load(parts.data() + block * width + i, count);
        store(of_weight + i, total, count);
    });
}
