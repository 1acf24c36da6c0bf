// Rotary positions, half-split: x [B, H, T, d] with any strides but in d, tables [B, T, d].

#include "cpu_vector.h"

// with `back` the gradient of x from that of the result
extern "C" void rope(const float* x, const float* cosines, const float* sines, float* out, int64_t batch,
                     int64_t heads, int64_t tokens, int64_t width, int64_t x_batch, int64_t x_head, int64_t x_token,
                     int64_t out_batch, int64_t out_head, int64_t out_token, int64_t back, int64_t threads) {
    int64_t half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * heads * tokens * width > FEW)
    for (int64_t place = 0; place < batch * tokens; place++) {
        int64_t row = place / tokens, token = place % tokens;
        const float* cosine = cosines + place * width;
        const float* sine = sines + place * width;
        for (int64_t head = 0; head < heads; head++) {
            const float* from = x + row * x_batch + head * x_head + token * x_token;
            float* to = out + row * out_batch + head * out_head + token * out_token;
            each(half, [&](int64_t i, auto count) {
                Vector low = load(from + i, count);
                Vector high = load(from + half + i, count);
                // the sine that multiplies `high` in the first half, and `low` in the second
                Vector to_low = -load(sine + (back ? half : 0) + i, count);
                Vector to_high = load(sine + (back ? 0 : half) + i, count);
                if (back) to_low = -to_low, to_high = -to_high;
                store(to + i, low * load(cosine + i, count) + high * to_low, count);
                store(to + half + i, high * load(cosine + half + i, count) + low * to_high, count);
            });
        }
    }
}
