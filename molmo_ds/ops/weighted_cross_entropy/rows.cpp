// The loss of rows of logits, and its gradient over them, in three passes over a row.

#include <cmath>

#include "cpu_vector.h"

// sums[r] = weight * (cross-entropy, z_loss * lse^2, whether the label is the likeliest); with `grad` the logits are
// overwritten by the gradient of the first two
extern "C" void loss_rows(float* logits, const int64_t* labels, const float* weights, float* sums, int64_t rows,
                          int64_t words, float z_loss, int64_t grad, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * words > FEW)
    for (int64_t row = 0; row < rows; row++) {
        float* here = logits + row * words;
        float at_label = here[labels[row]];
        float lowest = -INFINITY;
        Vector most = Vector{} + lowest;
        each(words, [&](int64_t i, auto count) {
            Vector x = load(here + i, count);
            if (count < WIDTH)
                for (int64_t lane = count; lane < WIDTH; lane++) x[lane] = lowest;
            most = x > most ? x : most;
        });
        float top = largest(most);
        bool right = at_label == top;
        // the first of equal logits counts
        for (int64_t i = 0; right && i < labels[row]; i++) right = here[i] != top;
        Vector total = {};
        each(words, [&](int64_t i, auto count) {
            Vector share = exp(load(here + i, count) - top);
            if (count < WIDTH)
                for (int64_t lane = count; lane < WIDTH; lane++) share[lane] = 0;
            total += share;
            if (grad) store(here + i, share, count);
        });
        float whole = sum(total);
        float lse = top + std::log(whole);
        float weight = weights[row];
        sums[row * 3] = weight * (lse - at_label);
        sums[row * 3 + 1] = weight * (z_loss * lse * lse);
        sums[row * 3 + 2] = weight * (right ? 1.0f : 0.0f);
        if (!grad) continue;
        float factor = weight * (1 + 2 * z_loss * lse) / whole;
        each(words, [&](int64_t i, auto count) { store(here + i, load(here + i, count) * factor, count); });
        here[labels[row]] -= weight;
    }
}
