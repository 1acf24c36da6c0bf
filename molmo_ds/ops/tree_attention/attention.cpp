// Attention of queries over the keys that they see, and its gradients.
//
// B sequences of T queries and S keys, H heads in groups that share keys and values, d numbers a head. Queries are taken
// by blocks, keys by panels. A plan (`panels.py`) lists for each block the panels of which it sees something; a word for
// each query says which keys, a bit each, unless all see all.
// A handful of queries meets all its keys at once: scores, shares, values; nothing is rescaled. What no query of the
// handful sees is left out. Gradients take a panel at a time, so that what is between its five products stays near.

#include <cmath>
#include <vector>

#include "cpu_tile.h"

constexpr int KEYS = 32;         // of a panel, the bits of a word
constexpr int QUERIES = 48;      // of a block
constexpr int THIRD = TALL / 3;    // rows of the smallest tile; two larger ones have two and three times as many
constexpr uint32_t ALL = 0xffffffffu;
static_assert(QUERIES % THIRD == 0 && KEYS % THIRD == 0 && KEYS % PANEL == 0 && QUERIES % WIDTH == 0);

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
    int64_t vectors() const { return (width + WIDTH - 1) / WIDTH; }
    int64_t sheets() const { return (width + PANEL - 1) / PANEL; }
    int64_t rows() const { return panels() * KEYS; }            // of keys, zeros at the end
    int64_t each() const { return rows() * sheets() * PANEL; }  // numbers of one sequence and group, in sheets
    int64_t columns() const { return (width + THIRD - 1) / THIRD * THIRD; }  // of a head, for whole tiles
};

struct Panel {
    int64_t number, words;  // where those of the block's queries begin; -1 where all see all
};

struct Plan {
    const int64_t* begins;  // [sequences, blocks + 1]
    const Panel* panels;
    const uint32_t* words;
};

// Products of rows that lie as the compiler knows: `a` steps further from row to row and from step to step, PANEL or KEYS
// in b and in the result. What is as wide as a head lies in sheets of PANEL columns, each with all its rows.
template <int64_t a_row, int64_t a_step, int64_t b_step, int64_t out_row>
struct Product {
    template <int R>
    static void strip(const float* a, const float* b, int64_t b_sheet, float* out, int64_t out_sheet, int64_t steps,
                      int64_t vectors, bool add) {
        for (; vectors > 1; vectors -= 2, b += b_sheet, out += out_sheet)
            tile<R, 2>(a, a_row, a_step, b, b_step, out, out_row, steps, add);
        if (vectors) tile<R, 1>(a, a_row, a_step, b, b_step, out, out_row, steps, add);
    }

    // rows: a multiple of THIRD
    static void run(const float* a, const float* b, int64_t b_sheet, float* out, int64_t out_sheet, int64_t rows,
                    int64_t steps, int64_t vectors, bool add) {
        for (; rows >= TALL; rows -= TALL, a += TALL * a_row, out += TALL * out_row)
            strip<TALL>(a, b, b_sheet, out, out_sheet, steps, vectors, add);
        if (rows == 2 * THIRD) strip<2 * THIRD>(a, b, b_sheet, out, out_sheet, steps, vectors, add);
        if (rows == THIRD) strip<THIRD>(a, b, b_sheet, out, out_sheet, steps, vectors, add);
    }
};

// the mean of values by shares of R queries: out[R, C vectors] of all panels [shares: R, KEYS] times [values: KEYS, PANEL],
// some panels at a time, for long sums round more
template <int R, int C>
static inline void mix(const float* shares, const float* values, const std::vector<Panel>& panels, float* out) {
    constexpr size_t CHAIN = 4;
    for (size_t first = 0; first < panels.size() || first == 0; first += CHAIN) {
        Vector sums[R][C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] = Vector{};
        for (size_t n = first; n < first + CHAIN && n < panels.size(); n++, shares += R * KEYS) {
            const float* b = values + panels[n].number * KEYS * PANEL;
            for (int k = 0; k < KEYS; k++) {
                Vector here[C];
                for (int c = 0; c < C; c++) here[c] = load(b + k * PANEL + c * WIDTH);
                for (int r = 0; r < R; r++)
                    for (int c = 0; c < C; c++) sums[r][c] += shares[r * KEYS + k] * here[c];
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) {
                float* to = out + r * PANEL + c * WIDTH;
                store(to, first ? load(to) + sums[r][c] : sums[r][c]);
            }
    }
}

// where a word's bits from `first` on are set: x, else `other`
static inline Vector where(uint32_t word, int first, Vector x, float other) {
    Integers bits;
    for (int lane = 0; lane < WIDTH; lane++) bits[lane] = 1 << lane;
    return ((Integers{} + (int32_t)(word >> first)) & bits) != 0 ? x : Vector{} + other;
}

// a row of a head from sheets, which are so far apart
static inline void gather(const float* from, int64_t sheet, int64_t width, float* row) {
    for (int64_t c = 0; c < width; c += PANEL, from += sheet)
        ::each(smaller(width - c, PANEL), [&](int64_t i, auto some) { store(row + c + i, load(from + i, some), some); });
}

// the keys [keys, d] of one sequence and group to sheets
static void copy(const Tensor& x, int64_t sequence, int64_t group, const Sizes& size, float* to) {
    memset(to, 0, size.each() * sizeof(float));
    for (int64_t t = 0; t < size.keys; t++, to += PANEL) {
        const float* row = x.at(sequence, group, t);
        ::each(size.width, [&](int64_t c, auto some) {
            store(to + c / PANEL * size.rows() * PANEL + c % PANEL, load(row + c, some), some);
        });
    }
}

// count rows [d] from `first` on to columns [d, many], zeros after them
template <int64_t many>
static void turn(const Tensor& x, int64_t sequence, int64_t head, int64_t first, int64_t count, int64_t width, float* to) {
    for (int64_t i = 0; i < many; i += WIDTH) {
        int64_t c = 0;
        if (i + WIDTH <= count)
            for (; c + WIDTH <= width; c += WIDTH)
                transpose(x.at(sequence, head, first + i) + c, x.token, to + c * many + i, many);
        for (int64_t j = i; j < i + WIDTH; j++) {
            const float* from = j < count ? x.at(sequence, head, first + j) : nullptr;
            for (int64_t d = c; d < width; d++) to[d * many + j] = from ? from[d] : 0;
        }
    }
}

// the keys to [panels, d, KEYS]
static void turn_keys(const Tensor& x, int64_t sequence, int64_t group, const Sizes& size, float* to) {
    for (int64_t first = 0; first < size.keys; first += KEYS, to += size.width * KEYS)
        turn<KEYS>(x, sequence, group, first, smaller(size.keys - first, KEYS), size.width, to);
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

// R queries, some columns of [d, QUERIES], to their means [sheets, R, PANEL] and logarithms of sums
template <int R>
static void forward(const float* query, const float* keys, const float* values, const std::vector<Panel>& panels,
                    const uint32_t* words, const Sizes& size, float* shares, float* out, float* sums) {
    float scale = 1.0f / std::sqrt((float)size.width);
    float lowest = -INFINITY;
    Vector most[R];
    for (int r = 0; r < R; r++) most[r] = Vector{} + lowest;
    float* part = shares;
    for (const Panel& panel : panels) {
        const float* panel_keys = keys + panel.number * size.width * KEYS;
        Product<1, QUERIES, KEYS, KEYS>::strip<R>(query, panel_keys, PANEL, part, PANEL, size.width, KEYS / WIDTH, false);
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
    int64_t vectors = size.vectors();
    for (; vectors > 0; vectors -= 2, values += size.rows() * PANEL, out += R * PANEL) {
        if (vectors > 1)
            mix<R, 2>(shares, values, panels, out);
        else
            mix<R, 1>(shares, values, panels, out);
        for (int r = 0; r < R; r++)
            for (int64_t i = 0; i < PANEL; i += WIDTH) store(out + r * PANEL + i, load(out + r * PANEL + i) * parts[r]);
    }
}

extern "C" void attention(float* q, float* k, float* v, float* out, float* sums, const int64_t* strides,
                          const int64_t* sizes, const int64_t* begins, const int64_t* panels, const uint32_t* words,
                          int64_t threads) {
    const Sizes& size = *(const Sizes*)sizes;
    Plan plan = {begins, (const Panel*)panels, words};
    Tensor queries = tensor(q, strides), keys = tensor(k, strides + 3);
    Tensor values = tensor(v, strides + 6), result = tensor(out, strides + 9);
    int64_t blocks = size.blocks(), pairs = size.sequences * size.groups, many = size.heads / size.groups;
    // a task copies the keys and values of a sequence and group, and has a part of its blocks
    int64_t parts = threads > 1 ? smaller((2 * threads + pairs - 1) / pairs, blocks) : 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < pairs * parts; task++) {
        int64_t pair = task / parts, sequence = pair / size.groups, group = pair % size.groups;
        Numbers key_panels(size.each()), value_sheets(size.each()), columns(size.width * QUERIES);
        Numbers shares(size.panels() * TALL * KEYS), means(size.sheets() * TALL * PANEL);
        turn_keys(keys, sequence, group, size, key_panels.data);
        copy(values, sequence, group, size, value_sheets.data);
        std::vector<Panel> own;
        float own_sums[TALL];
        for (int64_t n = blocks * (task % parts) / parts * many; n < blocks * (task % parts + 1) / parts * many; n++) {
            int64_t head = group * many + n % many, list = sequence * (blocks + 1) + n / many;
            int64_t begin = n / many * QUERIES, end = smaller(begin + QUERIES, size.queries);
            turn<QUERIES>(queries, sequence, head, begin, end - begin, size.width, columns.data);
            for (int64_t first = begin; first < end; first += TALL) {
                int64_t count = smaller(end - first, TALL), rows = (count + THIRD - 1) / THIRD * THIRD;
                seen(plan, list, first - begin, first - begin + count, own);
                auto* run = rows == TALL ? forward<TALL> : rows == THIRD ? forward<THIRD> : forward<2 * THIRD>;
                run(columns.data + first - begin, key_panels.data, value_sheets.data, own, words, size, shares.data,
                    means.data, own_sums);
                memcpy(sums + (sequence * size.heads + head) * size.queries + first, own_sums, count * sizeof(float));
                for (int64_t r = 0; r < count; r++)
                    gather(means.data + r * PANEL, rows * PANEL, size.width, result.at(sequence, head, first + r));
            }
        }
    }
}

// [panels, columns, KEYS] of one sequence and group back to rows [keys, d]
static void turn_back(const float* from, const Tensor& x, int64_t sequence, int64_t group, const Sizes& size) {
    for (int64_t first = 0; first < size.keys; first += KEYS, from += size.columns() * KEYS)
        for (int64_t i = 0; i < smaller(size.keys - first, KEYS); i += WIDTH) {
            int64_t here = smaller(size.keys - first - i, WIDTH), c = 0;
            float* to = x.at(sequence, group, first + i);
            if (here == WIDTH)
                for (; c + WIDTH <= size.width; c += WIDTH) transpose(from + c * KEYS + i, KEYS, to + c, x.token);
            for (int64_t j = 0; j < here; j++)
                for (int64_t d = c; d < size.width; d++) to[j * x.token + d] = from[d * KEYS + i + j];
        }
}

// what the gradients of a block of queries need; queries and slopes are columns [columns, QUERIES]
struct Block {
    static constexpr int64_t SHEET = QUERIES * PANEL;
    alignas(64) float shares[QUERIES * KEYS], of_scores[QUERIES * KEYS];
    float means[QUERIES], sums[QUERIES];
    Numbers query, slope, of_query;  // of_query: [sheets, QUERIES, PANEL]
    explicit Block(const Sizes& size)
        : query(size.columns() * QUERIES), slope(size.columns() * QUERIES), of_query(size.sheets() * SHEET) {
        memset(query.data, 0, size.columns() * QUERIES * sizeof(float));
        memset(slope.data, 0, size.columns() * QUERIES * sizeof(float));
    }

    // count queries from `first` on, and after them what sees nothing
    void fill(const Tensor& queries, const Tensor& slopes, const Tensor& result, const float* log_sums, int64_t sequence,
              int64_t head, int64_t first, int64_t count, const Sizes& size) {
        memset(of_query.data, 0, size.sheets() * SHEET * sizeof(float));
        turn<QUERIES>(queries, sequence, head, first, count, size.width, query.data);
        turn<QUERIES>(slopes, sequence, head, first, count, size.width, slope.data);
        for (int64_t row = 0; row < QUERIES; row++) {
            means[row] = 0;
            sums[row] = INFINITY;
            if (row >= count) continue;
            const float* came_out = result.at(sequence, head, first + row);
            const float* own_slope = slopes.at(sequence, head, first + row);
            Vector dot = {};
            ::each(size.width, [&](int64_t i, auto some) { dot += load(came_out + i, some) * load(own_slope + i, some); });
            means[row] = sum(dot);
            sums[row] = log_sums[row];
        }
    }

    // scores and slopes of shares [rows first to end, KEYS] to shares and slopes of scores
    void soften(const uint32_t* words, float scale, int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++)
            for (int i = 0; i < KEYS; i += WIDTH) {
                float *share = shares + row * KEYS + i, *of_score = of_scores + row * KEYS + i;
                Vector x = exp(load(share) * scale - sums[row]);
                if (words) x = where(words[row], i, x, 0);
                store(share, x);
                store(of_score, x * (load(of_score) - means[row]) * scale);
            }
    }
};

extern "C" void attention_backward(float* of_out, float* q, float* k, float* v, float* out, const float* sums,
                                   float* of_q, float* of_k, float* of_v, const int64_t* strides, const int64_t* sizes,
                                   const int64_t* begins, const int64_t* panels, const uint32_t* words,
                                   int64_t threads) {
    typedef Product<1, QUERIES, KEYS, KEYS> Scores;    // queries or slopes times panels of keys or values
    typedef Product<KEYS, 1, PANEL, PANEL> OfQueries;  // slopes of scores times rows of keys
    typedef Product<QUERIES, 1, KEYS, KEYS> OfKeys;    // columns of queries or slopes times slopes of scores or shares
    const Sizes& size = *(const Sizes*)sizes;
    Plan plan = {begins, (const Panel*)panels, words};
    Tensor slopes = tensor(of_out, strides), queries = tensor(q, strides + 3), keys = tensor(k, strides + 6);
    Tensor values = tensor(v, strides + 9), result = tensor(out, strides + 12), of_queries = tensor(of_q, strides + 15);
    Tensor of_keys = tensor(of_k, strides + 18), of_values = tensor(of_v, strides + 21);
    float scale = 1.0f / std::sqrt((float)size.width);
    int64_t blocks = size.blocks(), many = size.heads / size.groups, vectors = size.vectors();
    int64_t sheet = size.rows() * PANEL;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < size.sequences * size.groups; task++) {
        int64_t sequence = task / size.groups, group = task % size.groups;
        int64_t turned = size.columns() * KEYS, each = size.panels() * turned;
        Numbers key_panels(each), value_panels(each), key_slopes(each), value_slopes(each), key_sheets(size.each());
        turn_keys(keys, sequence, group, size, key_panels.data);
        turn_keys(values, sequence, group, size, value_panels.data);
        copy(keys, sequence, group, size, key_sheets.data);
        memset(key_slopes.data, 0, each * sizeof(float));
        memset(value_slopes.data, 0, each * sizeof(float));
        Block block(size);
        std::vector<Panel> own;
        for (int64_t n = 0; n < blocks * many; n++) {
            int64_t head = group * many + n % many, begin = n / many * QUERIES;
            int64_t count = smaller(size.queries - begin, QUERIES);
            block.fill(queries, slopes, result, sums + (sequence * size.heads + head) * size.queries + begin, sequence,
                       head, begin, count, size);
            seen(plan, sequence * (blocks + 1) + n / many, 0, count, own);
            for (const Panel& panel : own) {
                const uint32_t* own_words = panel.words < 0 ? nullptr : words + panel.words;
                // the queries from the first to the last that see something, some more for whole tiles
                int64_t first = 0, end = count;
                while (own_words && !own_words[first]) first++;
                while (own_words && !own_words[end - 1]) end--;
                first = first / THIRD * THIRD;
                end = (end + THIRD - 1) / THIRD * THIRD;
                int64_t rows = end - first, keys_at = panel.number * size.width * KEYS, slopes_at = panel.number * turned;
                const float *query = block.query.data + first, *slope = block.slope.data + first;
                float *shares = block.shares + first * KEYS, *of_scores = block.of_scores + first * KEYS;
                Scores::run(query, key_panels.data + keys_at, PANEL, shares, PANEL, rows, size.width, KEYS / WIDTH, false);
                Scores::run(slope, value_panels.data + keys_at, PANEL, of_scores, PANEL, rows, size.width, KEYS / WIDTH,
                            false);
                block.soften(own_words, scale, first, end);
                OfQueries::run(of_scores, key_sheets.data + panel.number * KEYS * PANEL, sheet,
                               block.of_query.data + first * PANEL, Block::SHEET, rows, KEYS, vectors, true);
                OfKeys::run(query, of_scores, PANEL, key_slopes.data + slopes_at, PANEL, size.columns(), rows,
                            KEYS / WIDTH, true);
                OfKeys::run(slope, shares, PANEL, value_slopes.data + slopes_at, PANEL, size.columns(), rows,
                            KEYS / WIDTH, true);
            }
            for (int64_t row = 0; row < count; row++)
                gather(block.of_query.data + row * PANEL, Block::SHEET, size.width,
                       of_queries.at(sequence, head, begin + row));
        }
        turn_back(key_slopes.data, of_keys, sequence, group, size);
        turn_back(value_slopes.data, of_values, sequence, group, size);
    }
}
