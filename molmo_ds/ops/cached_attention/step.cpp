// A cache of keys and values [S, G, C, d]: one new token of each row over it, written first, and what a prefill writes.

#include <cmath>
#include <vector>

#include "cpu_vector.h"

// scores to shares that sum to 1
static inline void soften(float* scores, int64_t seen) {
    float most = scores[0];
    for (int64_t i = 1; i < seen; i++) most = scores[i] > most ? scores[i] : most;
    float total = 0;
    each(seen, [&](int64_t i, auto count) {
        Vector share = exp(load(scores + i, count) - most);
        store(scores + i, share, count);
        for (int64_t lane = 0; lane < count; lane++) total += share[lane];
    });
    each(seen, [&](int64_t i, auto count) { store(scores + i, load(scores + i, count) * (1.0f / total), count); });
}

// adds the values of some tokens, N vectors of each, by their shares
template <int N>
static inline void add(const float* shares, const float* values, float* mean, int64_t first, int64_t last, int64_t width) {
    Vector total[N];
    for (int n = 0; n < N; n++) total[n] = load(mean + n * WIDTH);
    for (int64_t t = first; t < last; t++)
        for (int n = 0; n < N; n++) total[n] += shares[t] * load(values + t * width + n * WIDTH);
    for (int n = 0; n < N; n++) store(mean + n * WIDTH, total[n]);
}

// row r reads slot r up to places[r]; queries [R, H, d], keys and values of the new token [R, G, d]
extern "C" void attention_step(const float* q, const float* k, const float* v, float* keys, float* values,
                               const int64_t* places, float* out, int64_t rows, int64_t heads, int64_t groups,
                               int64_t capacity, int64_t width, int64_t threads) {
    int64_t each_group = heads / groups;
    float scale = 1.0f / std::sqrt((float)width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t pair = 0; pair < rows * groups; pair++) {
        int64_t row = pair / groups;
        int64_t seen = places[row] + 1;
        float* own_keys = keys + pair * capacity * width;
        float* own_values = values + pair * capacity * width;
        memcpy(own_keys + places[row] * width, k + pair * width, width * sizeof(float));
        memcpy(own_values + places[row] * width, v + pair * width, width * sizeof(float));
        int64_t length = (seen + WIDTH - 1) / WIDTH * WIDTH;
        std::vector<float> shares(each_group * length);
        int64_t first_head = row * heads + pair % groups * each_group;
        const float* query = q + first_head * width;
        float* mean = out + first_head * width;
        for (int64_t token = 0; token < seen; token += WIDTH) {
            for (int64_t head = 0; head < each_group; head++) {
                Vector products[WIDTH] = {};
                each(width, [&](int64_t i, auto count) __attribute__((always_inline)) {
                    Vector here = load(query + head * width + i, count);
#pragma GCC unroll 16
                    for (int64_t t = 0; t < WIDTH; t++) {
                        int64_t place = token + t < seen ? token + t : seen - 1;
                        products[t] += here * load(own_keys + place * width + i, count);
                    }
                });
                store(shares.data() + head * length + token, sums(products) * scale);
            }
        }
        for (int64_t head = 0; head < each_group; head++) soften(shares.data() + head * length, seen);
        memset(mean, 0, each_group * width * sizeof(float));
        for (int64_t token = 0; token < seen; token += WIDTH) {
            int64_t last = token + WIDTH < seen ? token + WIDTH : seen;
            for (int64_t head = 0; head < each_group; head++) {
                const float* share = shares.data() + head * length;
                int64_t i = 0;
                for (; i + 8 * WIDTH <= width; i += 8 * WIDTH)
                    add<8>(share, own_values + i, mean + head * width + i, token, last, width);
                for (; i + 4 * WIDTH <= width; i += 4 * WIDTH)
                    add<4>(share, own_values + i, mean + head * width + i, token, last, width);
                for (; i + WIDTH <= width; i += WIDTH)
                    add<1>(share, own_values + i, mean + head * width + i, token, last, width);
                if (i < width) {
                    Vector total = load(mean + head * width + i, width - i);
                    for (int64_t t = token; t < last; t++) total += share[t] * load(own_values + t * width + i, width - i);
                    store(mean + head * width + i, total, width - i);
                }
            }
        }
    }
}

// token source[n] of fresh [B, G, T, d], counted through all rows, to kept[slots[n], :, places[n]]
extern "C" void write_cache(float* kept, const float* fresh, const int64_t* source, const int64_t* slots,
                            const int64_t* places, int64_t count, int64_t groups, int64_t capacity, int64_t width,
                            int64_t tokens, int64_t of_row, int64_t of_group, int64_t of_token, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count * groups * width > FEW)
    for (int64_t n = 0; n < count; n++) {
        const float* from = fresh + source[n] / tokens * of_row + source[n] % tokens * of_token;
        float* to = kept + (slots[n] * groups * capacity + places[n]) * width;
        for (int64_t group = 0; group < groups; group++)
            memcpy(to + group * capacity * width, from + group * of_group, width * sizeof(float));
    }
}
