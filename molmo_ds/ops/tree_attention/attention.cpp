// Attention of queries over the keys that they see, and its gradients.
//
// B sequences of T queries and S keys, H heads in groups that share keys and values, d numbers a head. Queries are taken
// by blocks, keys by panels. A plan (`panels.py`) lists for each block the panels of which it sees something; a word for
// each query says which keys, a bit each, unless all see all.
// A handful of queries meets all its keys at once: scores, shares, values; nothing is rescaled. What no query of the
// handful sees is left out. Gradients take a panel at a time, so that what is between its five products stays near.

#include <cmath>
#include <memory>
#include <vector>

#include "cpu_vector.h"

constexpr int KEYS = 32;                          // of a panel, the bits of a word
constexpr int QUERIES = 48;                       // of a block
constexpr int TALL = REGISTERS == 32 ? 12 : 6;    // queries whose sums fit into the registers
constexpr uint32_t ALL = 0xffffffffu;

struct Tensor {  // [sequences, heads, tokens, d]
    float* data;
    int64_t sequence, head, token;
    float* at(int64_t s, int64_t h, int64_t t) const { return data + s * sequence + h * head + t * token; }
};

static inline Tensor tensor(float* data, const int64_t* strides) {
    return Tensor{data, strides[0], strides[1], strides[2]};
}

struct Sizes {
    int64_t sequences, heads, groups, queries, keys, width;
    int64_t panels() const { return (keys + KEYS - 1) / KEYS; }
    int64_t blocks() const { return (queries + QUERIES - 1) / QUERIES; }
    int64_t wide() const { return (width + WIDTH - 1) / WIDTH * WIDTH; }  // whole vectors, zeros at the end
    int64_t each() const { return panels() * KEYS * wide(); }             // numbers of one sequence and group
};

struct Panel {
    int64_t number, words;  // where those of the block's queries begin; -1 where all see all
};

struct Plan {
    const int64_t* begins;  // [sequences, blocks + 1]
    const Panel* panels;
    const uint32_t* words;
};

typedef std::unique_ptr<float[]> Numbers;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[R, C vectors] = (add ? out : 0) + a[R, steps] times b[steps, C vectors]
template <int R, int C>
static inline void tile(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* out,
                        int64_t out_row, int64_t steps, bool add) {
    Vector sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = Vector{};
    for (int64_t k = 0; k < steps; k++) {
        Vector here[C];
        for (int c = 0; c < C; c++) here[c] = load(b + k * b_step + c * WIDTH);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] += a[r * a_row + k * a_step] * here[c];
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            float* to = out + r * out_row + c * WIDTH;
            store(to, add ? load(to) + sums[r][c] : sums[r][c]);
        }
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
    int64_t strips = (rows + TALL - 1) / TALL;  // as equal as can be
    for (int64_t i = 0; i < strips; i++) {
        int64_t r = rows * i / strips, next = rows * (i + 1) / strips;
        Strip* run = of_rows(next - r, std::make_integer_sequence<int, TALL>());
        run(a + r * a_row, a_row, a_step, b, b_step, out + r * out_row, out_row, steps, columns, add);
    }
}

// the mean of values by shares of R queries: out[R, C vectors] of all panels [shares: R, KEYS] times [values: KEYS, wide]
template <int R, int C>
static inline void mix(const float* shares, const float* values, const std::vector<Panel>& panels, float* out,
                       int64_t wide) {
    Vector sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = Vector{};
    for (const Panel& panel : panels) {
        const float* b = values + panel.number * KEYS * wide;
        for (int k = 0; k < KEYS; k++) {
            Vector here[C];
            for (int c = 0; c < C; c++) here[c] = load(b + k * wide + c * WIDTH);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < C; c++) sums[r][c] += shares[r * KEYS + k] * here[c];
        }
        shares += R * KEYS;
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(out + r * wide + c * WIDTH, sums[r][c]);
}

// where a word's bits from `first` on are set: x, else `other`
static inline Vector where(uint32_t word, int first, Vector x, float other) {
    Integers bits;
    for (int lane = 0; lane < WIDTH; lane++) bits[lane] = 1 << lane;
    return ((Integers{} + (int32_t)(word >> first)) & bits) != 0 ? x : Vector{} + other;
}

// rows [keys, d] of one sequence and group to [panels * KEYS, wide]
static void copy(const Tensor& x, int64_t sequence, int64_t group, const Sizes& size, float* to) {
    int64_t wide = size.wide();
    memset(to, 0, size.each() * sizeof(float));
    for (int64_t t = 0; t < size.keys; t++)
        memcpy(to + t * wide, x.at(sequence, group, t), size.width * sizeof(float));
}

// the same to [panels, d, KEYS]
static void turn(const Tensor& x, int64_t sequence, int64_t group, const Sizes& size, float* to) {
    for (int64_t first = 0; first < size.keys; first += KEYS, to += size.width * KEYS)
        for (int64_t i = 0; i < KEYS; i++) {
            const float* from = first + i < size.keys ? x.at(sequence, group, first + i) : nullptr;
            for (int64_t c = 0; c < size.width; c++) to[c * KEYS + i] = from ? from[c] : 0;
        }
}

// the panels of a block of which some of its queries first to end see something
static void seen(const Plan& plan, int64_t block, int64_t first, int64_t end, std::vector<Panel>& out) {
    out.clear();
    for (int64_t i = plan.begins[block]; i < plan.begins[block + 1]; i++) {
        Panel panel = plan.panels[i];
        if (panel.words >= 0) {
            uint32_t any = 0, all = ALL;
            for (int64_t q = first; q < end; q++) {
                any |= plan.words[panel.words + q];
                all &= plan.words[panel.words + q];
            }
            if (!any) continue;
            panel.words = all == ALL ? -1 : panel.words + first;
        }
        out.push_back(panel);
    }
}

template <int R>
static void forward(const float* query, int64_t token, const float* keys, const float* values,
                    const std::vector<Panel>& panels, const uint32_t* words, const Sizes& size, float* shares,
                    float* out, float* sums) {
    float scale = 1.0f / std::sqrt((float)size.width);
    float lowest = -INFINITY;
    Vector most[R];
    for (int r = 0; r < R; r++) most[r] = Vector{} + lowest;
    float* part = shares;
    for (const Panel& panel : panels) {
        strip<R>(query, token, 1, keys + panel.number * size.width * KEYS, KEYS, part, KEYS, size.width, KEYS, false);
        for (int r = 0; r < R; r++, part += KEYS)
            for (int i = 0; i < KEYS; i += WIDTH) {
                Vector x = load(part + i);
                if (panel.words >= 0) store(part + i, x = where(words[panel.words + r], i, x, lowest));
                most[r] = x > most[r] ? x : most[r];
            }
    }
    float parts[R];
    for (int r = 0; r < R; r++) {
        float top = largest(most[r]) * scale;
        if (top == lowest) top = 0;  // sees nothing
        Vector total = {};
        for (size_t n = 0; n < panels.size(); n++)
            for (int i = 0; i < KEYS; i += WIDTH) {
                float* at = shares + (n * R + r) * KEYS + i;
                Vector x = exp(load(at) * scale - top);
                store(at, x);
                total += x;
            }
        float whole = sum(total);
        sums[r] = whole == 0 ? INFINITY : top + std::log(whole);  // NaN stays NaN
        parts[r] = whole == 0 ? 0 : 1 / whole;
    }
    int64_t wide = size.wide(), c = 0;
    for (; c + across(R) * WIDTH <= wide; c += across(R) * WIDTH)
        mix<R, across(R)>(shares, values + c, panels, out + c, wide);
    for (; c < wide; c += WIDTH) mix<R, 1>(shares, values + c, panels, out + c, wide);
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < wide; i += WIDTH) store(out + r * wide + i, load(out + r * wide + i) * parts[r]);
}

typedef void Forward(const float*, int64_t, const float*, const float*, const std::vector<Panel>&, const uint32_t*,
                     const Sizes&, float*, float*, float*);

template <int... R>
static Forward* forward_of(int64_t rows, std::integer_sequence<int, R...>) {
    static Forward* const table[] = {forward<R + 1>...};
    return table[rows - 1];
}

extern "C" void attention(float* q, float* k, float* v, float* out, float* sums, const int64_t* strides,
                          const int64_t* sizes, const int64_t* begins, const int64_t* panels, const uint32_t* words,
                          int64_t threads) {
    const Sizes& size = *(const Sizes*)sizes;
    Plan plan = {begins, (const Panel*)panels, words};
    Tensor queries = tensor(q, strides), keys = tensor(k, strides + 3);
    Tensor values = tensor(v, strides + 6), result = tensor(out, strides + 9);
    int64_t wide = size.wide(), blocks = size.blocks(), pairs = size.sequences * size.groups;
    Numbers key_panels(new float[pairs * size.each()]), value_rows(new float[pairs * size.each()]);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < pairs; n++) {
        turn(keys, n / size.groups, n % size.groups, size, key_panels.get() + n * size.each());
        copy(values, n / size.groups, n % size.groups, size, value_rows.get() + n * size.each());
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < size.sequences * blocks * size.heads; task++) {
        int64_t head = task % size.heads, block = task / size.heads % blocks, sequence = task / size.heads / blocks;
        int64_t pair = sequence * size.groups + head / (size.heads / size.groups);
        int64_t list = sequence * (blocks + 1) + block;
        Numbers shares(new float[(begins[list + 1] - begins[list]) * TALL * KEYS + TALL * wide]);
        float* mean = shares.get() + (begins[list + 1] - begins[list]) * TALL * KEYS;
        std::vector<Panel> own;
        int64_t begin = block * QUERIES, end = smaller(begin + QUERIES, size.queries);
        for (int64_t first = begin; first < end; first += TALL) {
            int64_t count = smaller(end - first, TALL);
            seen(plan, list, first - begin, first - begin + count, own);
            Forward* run = forward_of(count, std::make_integer_sequence<int, TALL>());
            run(queries.at(sequence, head, first), queries.token, key_panels.get() + pair * size.each(),
                value_rows.get() + pair * size.each(), own, words, size, shares.get(), mean,
                sums + (sequence * size.heads + head) * size.queries + first);
            for (int64_t r = 0; r < count; r++)
                memcpy(result.at(sequence, head, first + r), mean + r * wide, size.width * sizeof(float));
        }
    }
}

// what the gradients of a block of queries need
struct Block {
    alignas(64) float shares[QUERIES * KEYS], of_scores[QUERIES * KEYS];
    float means[QUERIES];
    Numbers query, slope, of_query;  // [QUERIES, wide]
    explicit Block(int64_t wide)
        : query(new float[QUERIES * wide]()), slope(new float[QUERIES * wide]()), of_query(new float[QUERIES * wide]) {}
};

// scores and slopes of shares [rows first to end, KEYS] to shares and slopes of scores
static void soften(Block& block, const uint32_t* words, const float* sums, float scale, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++)
        for (int i = 0; i < KEYS; i += WIDTH) {
            float* share = block.shares + row * KEYS + i;
            float* of_score = block.of_scores + row * KEYS + i;
            Vector x = exp(load(share) * scale - sums[row]);
            if (words) x = where(words[row], i, x, 0);
            store(share, x);
            store(of_score, x * (load(of_score) - block.means[row]) * scale);
        }
}

extern "C" void attention_backward(float* of_out, float* q, float* k, float* v, float* out, const float* sums,
                                   float* of_q, float* of_k, float* of_v, const int64_t* strides, const int64_t* sizes,
                                   const int64_t* begins, const int64_t* panels, const uint32_t* words,
                                   int64_t threads) {
    const Sizes& size = *(const Sizes*)sizes;
    Plan plan = {begins, (const Panel*)panels, words};
    Tensor slopes = tensor(of_out, strides), queries = tensor(q, strides + 3), keys = tensor(k, strides + 6);
    Tensor values = tensor(v, strides + 9), result = tensor(out, strides + 12), of_queries = tensor(of_q, strides + 15);
    Tensor of_keys = tensor(of_k, strides + 18), of_values = tensor(of_v, strides + 21);
    float scale = 1.0f / std::sqrt((float)size.width);
    int64_t wide = size.wide(), blocks = size.blocks(), many = size.heads / size.groups, row_bytes = size.width * 4;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < size.sequences * size.groups; task++) {
        int64_t sequence = task / size.groups, group = task % size.groups;
        Numbers numbers(new float[5 * size.each()]());
        float* key_panels = numbers.get();
        float* value_panels = key_panels + size.each();
        float* key_rows = value_panels + size.each();
        float* key_slopes = key_rows + size.each();
        float* value_slopes = key_slopes + size.each();
        turn(keys, sequence, group, size, key_panels);
        turn(values, sequence, group, size, value_panels);
        copy(keys, sequence, group, size, key_rows);
        Block block(wide);
        std::vector<Panel> own;
        for (int64_t n = 0; n < blocks * many; n++) {
            int64_t head = group * many + n % many, begin = n / many * QUERIES;
            int64_t list = sequence * (blocks + 1) + n / many;
            int64_t count = smaller(size.queries - begin, QUERIES);
            const float* own_sums = sums + (sequence * size.heads + head) * size.queries + begin;
            for (int64_t row = 0; row < count; row++) {
                const float* slope = slopes.at(sequence, head, begin + row);
                const float* came_out = result.at(sequence, head, begin + row);
                memcpy(block.query.get() + row * wide, queries.at(sequence, head, begin + row), row_bytes);
                memcpy(block.slope.get() + row * wide, slope, row_bytes);
                Vector dot = {};
                ::each(size.width, [&](int64_t i, auto some) { dot += load(came_out + i, some) * load(slope + i, some); });
                block.means[row] = sum(dot);
            }
            memset(block.of_query.get(), 0, QUERIES * wide * sizeof(float));
            seen(plan, list, 0, count, own);
            for (const Panel& panel : own) {
                const uint32_t* own_words = panel.words < 0 ? nullptr : words + panel.words;
                // the queries from the first to the last that see something
                int64_t first = 0, end = count;
                while (own_words && !own_words[first]) first++;
                while (own_words && !own_words[end - 1]) end--;
                int64_t rows = end - first;
                product(block.query.get() + first * wide, wide, 1, key_panels + panel.number * size.width * KEYS, KEYS,
                        block.shares + first * KEYS, KEYS, rows, size.width, KEYS, false);
                product(block.slope.get() + first * wide, wide, 1, value_panels + panel.number * size.width * KEYS, KEYS,
                        block.of_scores + first * KEYS, KEYS, rows, size.width, KEYS, false);
                soften(block, own_words, own_sums, scale, first, end);
                float* to = block.of_query.get() + first * wide;
                int64_t at = panel.number * KEYS * wide;
                product(block.of_scores + first * KEYS, KEYS, 1, key_rows + at, wide, to, wide, rows, KEYS, wide, true);
                product(block.of_scores + first * KEYS, 1, KEYS, block.query.get() + first * wide, wide, key_slopes + at,
                        wide, KEYS, rows, wide, true);
                product(block.shares + first * KEYS, 1, KEYS, block.slope.get() + first * wide, wide, value_slopes + at,
                        wide, KEYS, rows, wide, true);
            }
            for (int64_t row = 0; row < count; row++)
                memcpy(of_queries.at(sequence, head, begin + row), block.of_query.get() + row * wide, row_bytes);
        }
        for (int64_t t = 0; t < size.keys; t++) {
            memcpy(of_keys.at(sequence, group, t), key_slopes + t * wide, row_bytes);
            memcpy(of_values.at(sequence, group, t), value_slopes + t * wide, row_bytes);
        }
    }
}
