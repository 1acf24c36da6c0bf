// Vectors of floats as wide as the CPU's, in GCC's own words for them, and what C++ kernels do with them.
//
// Sums over a row are taken in one order whatever the number of threads, and a number is computed in the same way
// wherever a row ends, so that results depend neither on threads nor on how a tensor was cut.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

// vectors side by side of a tile with so many rows, whose sums stay in registers
constexpr int across(int rows) { return rows * 2 + 3 <= REGISTERS ? 2 : 1; }

typedef float Vector __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Integers __attribute__((vector_size(WIDTH * 4)));
typedef float Unaligned __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

constexpr int64_t FEW = 16384;  // numbers that are not worth another thread

static inline Vector load(const float* from) { return *(const Unaligned*)from; }
static inline void store(float* to, Vector x) { *(Unaligned*)to = x; }

// the first `count` numbers, the rest 0
static inline Vector load(const float* from, int64_t count) {
    Vector x = {};
    memcpy(&x, from, count * sizeof(float));
    return x;
}

static inline void store(float* to, Vector x, int64_t count) { memcpy(to, &x, count * sizeof(float)); }

// calls use(first, count) for each vector of a row of that many numbers; count is WIDTH but for the last
template <typename Use>
static inline void each(int64_t numbers, Use use) {
    int64_t i = 0;
    for (; i + WIDTH <= numbers; i += WIDTH) use(i, std::integral_constant<int64_t, WIDTH>());
    if (i < numbers) use(i, numbers - i);
}

// the same over a whole tensor, divided among threads
template <typename Use>
static inline void each_number(int64_t numbers, int64_t threads, Use use) {
    constexpr int64_t PART = 4096;  // that one thread takes at a time
#pragma omp parallel for num_threads(threads) schedule(static) if (numbers > FEW)
    for (int64_t first = 0; first < numbers; first += PART) {
        int64_t last = numbers - first < PART ? numbers - first : PART;
        each(last, [&](int64_t i, auto count) { use(first + i, count); });
    }
}

static inline Vector load(const float* from, std::integral_constant<int64_t, WIDTH>) { return load(from); }
static inline void store(float* to, Vector x, std::integral_constant<int64_t, WIDTH>) { store(to, x); }

// the sum of the lanes, in halves
static inline float sum(Vector x) {
    float lanes[WIDTH];
    memcpy(lanes, &x, sizeof(lanes));
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

// lanes of a and then of b: the sums of those whose (lane / half) is even with those `half` lanes further
template <int half, int... lane>
static inline Vector fold(Vector a, Vector b, std::integer_sequence<int, lane...>) {
    return __builtin_shuffle(a, b, Integers{(lane / half * 2 * half + lane % half)...}) +
           __builtin_shuffle(a, b, Integers{(lane / half * 2 * half + lane % half + half)...});
}

// lane i of the result is the sum of the lanes of x[i]; x is overwritten
template <int half = WIDTH / 2>
static inline Vector sums(Vector* x) {
    for (int i = 0; i < half; i++) x[i] = fold<half>(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, WIDTH>());
    if constexpr (half > 1) return sums<half / 2>(x);
    return x[0];
}

static inline float largest(Vector x) {
    float most = x[0];
    for (int i = 1; i < WIDTH; i++) most = x[i] > most ? x[i] : most;
    return most;
}

// e to the x, within 2 units in the last place: 2^n times a polynomial of degree 7 in the rest; 0 below -87.3, and from
// 88.3 on what it is there, so that no gate is infinity times 0
static inline Vector exp(Vector x) {
    const float LOW = -87.3f, HIGH = 88.3f;
    const float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
    Vector bounded = x > HIGH ? Vector{} + HIGH : x;
    bounded = bounded < LOW ? Vector{} + LOW : bounded;
    Vector shifted = bounded * 1.44269504f + ROUND;
    Vector n = shifted - ROUND;
    Vector rest = bounded - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Vector power = Vector{} + 1.0f / 5040;
    power = power * rest + 1.0f / 720;
    power = power * rest + 1.0f / 120;
    power = power * rest + 1.0f / 24;
    power = power * rest + 1.0f / 6;
    power = power * rest + 0.5f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    Integers exponent = ((Integers)shifted - (Integers)(Vector{} + ROUND) + 127) << 23;
    Vector out = power * (Vector)exponent;
    return x < LOW ? Vector{} : out;
}

static inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }

// the slope of x * sigmoid(x), without the difference of two numbers that are nearly equal
static inline Vector slope_of_silu(Vector x) {
    Vector power = exp(-x);
    Vector share = 1.0f / (1.0f + power);
    return share + x * share * (power * share);
}
