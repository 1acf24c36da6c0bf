// Rotary positions, half-split: x [B, H, T, d] with any strides but in d, tables [B, T, d].

#include "cpu_vector.h"

// a plain loop: half of a narrow head is less than a vector
static inline void turn(const float* __restrict x, const float* __restrict cosine, const float* __restrict to_low,
                        const float* __restrict to_high, float sign, float* __restrict out, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float low = x[i], high = x[half + i];
        out[i] = low * cosine[i] - high * (sign * to_low[i]);
        out[half + i] = high * cosine[half + i] + low * (sign * to_high[i]);
    }
}

// with `back` the gradient of x from that of the result
extern "C" void rope(const float* x, const float* cosines, const float* sines, float* out, int64_t batch,
                     int64_t heads, int64_t tokens, int64_t width, int64_t x_batch, int64_t x_head, int64_t x_token,
                     int64_t out_batch, int64_t out_head, int64_t out_token, int64_t back, int64_t threads) {
    int64_t half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * heads * tokens * width > FEW)
    for (int64_t place = 0; place < batch * tokens; place++) {
        int64_t row = place / tokens, token = place % tokens;
        const float* cosine = cosines + place * width;
        // the sine that multiplies `high` in the first half, and the one that multiplies `low` in the second
        const float* to_low = sines + place * width + (back ? half : 0);
        const float* to_high = sines + place * width + (back ? 0 : half);
        for (int64_t head = 0; head < heads; head++) {
            const float* from = x + row * x_batch + head * x_head + token * x_token;
            float* to = out + row * out_batch + head * out_head + token * out_token;
            turn(from, cosine, to_low, to_high, back ? -1.0f : 1.0f, to, half);
        }
    }
}
