// Attention of blocks of queries over runs of keys, and its gradients.
//
// Sequences of T queries and S keys, H heads in groups that share keys and values, d numbers a head (a multiple of a
// vector). A block is some queries of one sequence; its runs of keys begin at multiples of a panel, and only a run that
// ends the sequence may end elsewhere. A mask [queries, keys of all runs] of 0 and -infinity is added to the scores where
// there is one.
// A handful of queries meets all its keys at once: scores, shares, values; nothing is rescaled.

#include <cmath>
#include <memory>

#include "cpu_vector.h"

constexpr int PANEL = 2 * WIDTH;  // keys that are packed side by side
constexpr int TALL = 12;          // rows of a tile, whose sums fit into the registers
constexpr int64_t QUERIES = 4 * TALL;

static inline int64_t whole_panels(int64_t keys) { return (keys + PANEL - 1) / PANEL * PANEL; }

struct Tensor {  // [sequences, heads, tokens, d]
    float* data;
    int64_t sequence, head, token;
    float* at(int64_t s, int64_t h, int64_t t) const { return data + s * sequence + h * head + t * token; }
};

struct Block {
    int64_t sequence, begin, end, first_run, end_run, mask;
};

struct Run {
    int64_t begin, end;
};

struct Sizes {
    int64_t sequences, heads, groups, queries, keys, width, blocks;
    int64_t packed() const { return whole_panels(keys) * width; }  // numbers of one sequence and group
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[R, C vectors] = (add ? out : 0) + a[R, steps] times b[steps, C vectors]
template <int R, int C>
static inline void tile(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* out,
                        int64_t out_row, int64_t steps, bool add) {
    Vector sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = add ? load(out + r * out_row + c * WIDTH) : Vector{};
    for (int64_t k = 0; k < steps; k++) {
        Vector here[C];
        for (int c = 0; c < C; c++) here[c] = load(b + k * b_step + c * WIDTH);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] += a[r * a_row + k * a_step] * here[c];
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(out + r * out_row + c * WIDTH, sums[r][c]);
}

template <int R>
static void strip(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* out,
                  int64_t out_row, int64_t steps, int64_t columns, bool add) {
    int64_t n = 0;
    for (; n + across(R) * WIDTH <= columns; n += across(R) * WIDTH)
        tile<R, across(R)>(a, a_row, a_step, b + n, b_step, out + n, out_row, steps, add);
    for (; n < columns; n += WIDTH) tile<R, 1>(a, a_row, a_step, b + n, b_step, out + n, out_row, steps, add);
}

typedef void Strip(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, int64_t, int64_t, bool);

template <int... R>
static Strip* of_rows(int64_t rows, std::integer_sequence<int, R...>) {
    static Strip* const table[] = {strip<R + 1>...};
    return table[rows - 1];
}

// out[rows, columns] = (add ? out : 0) + a[rows, steps] times b[steps, columns], columns a multiple of a vector
static void product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* out,
                    int64_t out_row, int64_t rows, int64_t steps, int64_t columns, bool add) {
    for (int64_t r = 0; r < rows; r += TALL) {
        Strip* run = of_rows(smaller(rows - r, TALL), std::make_integer_sequence<int, TALL>());
        run(a + r * a_row, a_row, a_step, b, b_step, out + r * out_row, out_row, steps, columns, add);
    }
}

// [S, d] of one sequence and group to [panels, d, PANEL], zeros after the last key
static void pack(const float* from, int64_t token, int64_t keys, int64_t width, float* to) {
    for (int64_t first = 0; first < keys; first += PANEL, to += width * PANEL)
        for (int64_t i = 0; i < PANEL; i++)
            for (int64_t c = 0; c < width; c++)
                to[c * PANEL + i] = first + i < keys ? from[(first + i) * token + c] : 0.0f;
}

static std::unique_ptr<float[]> packed(const Tensor& x, const Sizes& size, int64_t threads) {
    int64_t each_one = size.packed();
    std::unique_ptr<float[]> out(new float[size.sequences * size.groups * each_one]);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < size.sequences * size.groups; n++)
        pack(x.at(n / size.groups, n % size.groups, 0), x.token, size.keys, size.width, out.get() + n * each_one);
    return out;
}

// keys of a block's runs, of which only the last may end within a panel
static int64_t seen(const Block& block, const Run* runs) {
    int64_t keys = 0;
    for (int64_t i = block.first_run; i < block.end_run; i++) keys += runs[i].end - runs[i].begin;
    return keys;
}

// rows of x times the panels of a block's runs: out[count, whole panels]
static void times_panels(const float* x, int64_t token, int64_t count, const float* panels, const Block& block,
                         const Run* runs, const Sizes& size, float* out, int64_t out_row) {
    for (int64_t row = 0; row < count; row += TALL) {
        int64_t tall = smaller(count - row, TALL);
        Strip* run = of_rows(tall, std::make_integer_sequence<int, TALL>());
        float* to = out + row * out_row;
        for (int64_t i = block.first_run; i < block.end_run; i++)
            for (int64_t key = runs[i].begin; key < runs[i].end; key += PANEL, to += PANEL) {
                int64_t columns = runs[i].end - key > WIDTH ? PANEL : WIDTH;
                run(x + row * token, token, 1, panels + key * size.width, PANEL, to, out_row, size.width, columns,
                    false);
            }
    }
}

extern "C" void attention(float* q, float* k, float* v, float* out, float* sums, const int64_t* strides,
                          const int64_t* sizes, const int64_t* blocks, const int64_t* run_list, int64_t threads) {
    const Sizes& size = *(const Sizes*)sizes;
    const Run* runs = (const Run*)run_list;
    auto tensor = [&](float* data, int n) {
        return Tensor{data, strides[3 * n], strides[3 * n + 1], strides[3 * n + 2]};
    };
    Tensor queries = tensor(q, 0), keys = tensor(k, 1), values = tensor(v, 2), result = tensor(out, 3);
    std::unique_ptr<float[]> panels = packed(keys, size, threads);
    int64_t each_one = size.packed();
    float scale = 1.0f / std::sqrt((float)size.width);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < size.blocks * size.heads; task++) {
        const Block& block = ((const Block*)blocks)[task / size.heads];
        int64_t head = task % size.heads, group = head / (size.heads / size.groups);
        const float* own = panels.get() + (block.sequence * size.groups + group) * each_one;
        int64_t real = seen(block, runs), row_length = whole_panels(real);
        std::unique_ptr<float[]> shares(new float[TALL * row_length]);
        for (int64_t first = block.begin; first < block.end; first += TALL) {
            int64_t count = smaller(block.end - first, TALL);
            times_panels(queries.at(block.sequence, head, first), queries.token, count, own, block, runs, size,
                         shares.get(), row_length);
            float* to = result.at(block.sequence, head, first);
            float parts[TALL];
            for (int64_t row = 0; row < count; row++) {
                float* share = shares.get() + row * row_length;
                const float* mask = block.mask ? (const float*)block.mask + (first - block.begin + row) * real : nullptr;
                float lowest = -INFINITY;
                Vector most = Vector{} + lowest;
                each(real, [&](int64_t i, auto many) {
                    Vector x = load(share + i, many);
                    if (mask) x += load(mask + i, many);
                    if (mask) store(share + i, x, many);
                    for (int64_t lane = many; lane < WIDTH; lane++) x[lane] = lowest;
                    most = x > most ? x : most;
                });
                float top = largest(most) * scale;
                if (top == lowest) top = 0;  // sees nothing
                Vector total = {};
                each(real, [&](int64_t i, auto many) {
                    Vector x = exp(load(share + i, many) * scale - top);
                    for (int64_t lane = many; lane < WIDTH; lane++) x[lane] = 0;
                    store(share + i, x, many);
                    total += x;
                });
                float whole = sum(total);
                sums[(block.sequence * size.heads + head) * size.queries + first + row] =
                    whole == 0 ? INFINITY : top + std::log(whole);  // NaN stays NaN
                parts[row] = whole == 0 ? 0 : 1 / whole;
                memset(to + row * result.token, 0, size.width * sizeof(float));
            }
            const float* share = shares.get();
            for (int64_t i = block.first_run; i < block.end_run; i++) {
                product(share, row_length, 1, values.at(block.sequence, group, runs[i].begin), values.token, to,
                        result.token, count, runs[i].end - runs[i].begin, size.width, true);
                share += runs[i].end - runs[i].begin;
            }
            for (int64_t row = 0; row < count; row++)
                for (int64_t c = 0; c < size.width; c += WIDTH)
                    store(to + row * result.token + c, load(to + row * result.token + c) * parts[row]);
        }
    }
}

// of_k and of_v hold zeros when it begins
extern "C" void attention_backward(float* of_out, float* q, float* k, float* v, float* out, const float* sums,
                                   float* of_q, float* of_k, float* of_v, const int64_t* strides, const int64_t* sizes,
                                   const int64_t* blocks, const int64_t* run_list, int64_t threads) {
    const Sizes& size = *(const Sizes*)sizes;
    const Run* runs = (const Run*)run_list;
    auto tensor = [&](float* data, int n) {
        return Tensor{data, strides[3 * n], strides[3 * n + 1], strides[3 * n + 2]};
    };
    Tensor slopes = tensor(of_out, 0), queries = tensor(q, 1), keys = tensor(k, 2), values = tensor(v, 3);
    Tensor result = tensor(out, 4), of_queries = tensor(of_q, 5), of_keys = tensor(of_k, 6), of_values = tensor(of_v, 7);
    std::unique_ptr<float[]> key_panels = packed(keys, size, threads);
    std::unique_ptr<float[]> value_panels = packed(values, size, threads);
    int64_t each_one = size.packed();
    float scale = 1.0f / std::sqrt((float)size.width);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < size.sequences * size.groups; task++) {
        int64_t sequence = task / size.groups, group = task % size.groups, many = size.heads / size.groups;
        const float* own_keys = key_panels.get() + task * each_one;
        const float* own_values = value_panels.get() + task * each_one;
        std::unique_ptr<float[]> shares(new float[QUERIES * whole_panels(size.keys)]);
        std::unique_ptr<float[]> of_scores(new float[QUERIES * whole_panels(size.keys)]);
        for (int64_t n = 0; n < size.blocks; n++) {
            const Block& block = ((const Block*)blocks)[n];
            if (block.sequence != sequence) continue;
            int64_t real = seen(block, runs), row_length = whole_panels(real);
            for (int64_t head = group * many; head < (group + 1) * many; head++) {
                for (int64_t first = block.begin; first < block.end; first += QUERIES) {
                    int64_t count = smaller(block.end - first, QUERIES);
                    float* query = queries.at(sequence, head, first);
                    float* slope = slopes.at(sequence, head, first);
                    times_panels(query, queries.token, count, own_keys, block, runs, size, shares.get(), row_length);
                    times_panels(slope, slopes.token, count, own_values, block, runs, size, of_scores.get(), row_length);
                    for (int64_t row = 0; row < count; row++) {
                        float* share = shares.get() + row * row_length;
                        float* of_score = of_scores.get() + row * row_length;
                        const float* mask =
                            block.mask ? (const float*)block.mask + (first - block.begin + row) * real : nullptr;
                        float lse = sums[(sequence * size.heads + head) * size.queries + first + row];
                        const float* came_out = result.at(sequence, head, first + row);
                        Vector dot = {};
                        for (int64_t c = 0; c < size.width; c += WIDTH)
                            dot += load(came_out + c) * load(slope + row * slopes.token + c);
                        float mean = sum(dot);
                        each(real, [&](int64_t i, auto some) {
                            Vector x = load(share + i, some);
                            if (mask) x += load(mask + i, some);
                            x = exp(x * scale - lse);
                            store(share + i, x, some);
                            store(of_score + i, x * (load(of_score + i, some) - mean) * scale, some);
                        });
                    }
                    float* to = of_queries.at(sequence, head, first);
                    for (int64_t row = 0; row < count; row++) memset(to + row * of_queries.token, 0, size.width * 4);
                    int64_t at = 0;
                    for (int64_t i = block.first_run; i < block.end_run; i++) {
                        int64_t begin = runs[i].begin, length = runs[i].end - begin;
                        product(of_scores.get() + at, row_length, 1, keys.at(sequence, group, begin), keys.token, to,
                                of_queries.token, count, length, size.width, true);
                        product(of_scores.get() + at, 1, row_length, query, queries.token,
                                of_keys.at(sequence, group, begin), of_keys.token, length, count, size.width, true);
                        product(shares.get() + at, 1, row_length, slope, slopes.token,
                                of_values.at(sequence, group, begin), of_values.token, length, count, size.width, true);
                        at += length;
                    }
                }
            }
        }
    }
}
