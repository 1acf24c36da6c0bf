// Attention of one query per window of patches, forward and backward, behind a plain C interface (ctypes).
//
// q, out [M, H, d]; k, v [M, W, H, d]; windows int64 [M, W], below 0 where a patch is missing, or null: all take part.
// L lanes share one (window, head); each holds VECTOR neighbouring numbers, loaded 16 bytes at once. Arithmetic in
// float32. No atomics: the same bits each time. A window without patches gives 0.

#ifndef MOLMO_HOST  // tests/ops/cuda_on_host.h stands in for these where the kernels run as plain C++
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define THREADS 256
#endif
#include <cstdint>

namespace {

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void from_float(float x, float& out) { out = x; }
__device__ void from_float(float x, __nv_bfloat16& out) { out = __float2bfloat16(x); }

template <typename T>
struct Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  float x[SIZE];

  __device__ static Vector load(const T* from, bool real) {
    union { uint4 whole; T part[SIZE]; } raw;
    raw.whole = real ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
    Vector out;
    for (int i = 0; i < SIZE; ++i) out.x[i] = to_float(raw.part[i]);
    return out;
  }
  __device__ void store(T* to, bool real) const {
    union { uint4 whole; T part[SIZE]; } raw;
    for (int i = 0; i < SIZE; ++i) from_float(x[i], raw.part[i]);
    if (real) *reinterpret_cast<uint4*>(to) = raw.whole;
  }
};

template <int L, typename T>
__device__ float dot(const Vector<T>& a, const Vector<T>& b) {  // over the L lanes of a head
  float sum = 0.0f;
  for (int i = 0; i < Vector<T>::SIZE; ++i) sum += a.x[i] * b.x[i];
  for (int step = L / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// scores -> shares of the window, in place
template <int W>
__device__ void softmax(float (&score)[W], const int64_t* windows, int64_t m) {
  float top = -INFINITY, total = 0.0f;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    if (windows != nullptr && windows[m * W + w] < 0) score[w] = -INFINITY;
    top = fmaxf(top, score[w]);
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    score[w] = top == -INFINITY ? 0.0f : __expf(score[w] - top);
    total += score[w];
  }
#pragma unroll
  for (int w = 0; w < W; ++w) score[w] = total == 0.0f ? 0.0f : score[w] / total;
}

struct Place {
  int64_t m, row;  // window; offset of this lane's numbers in q
  int64_t step;    // from one patch of the window to the next in k
  int64_t first;   // offset of the window's first patch in k
  bool real;       // lanes after d and heads after the last only take part in the sums
};

template <int L, int W, int SIZE>
__device__ Place place(int64_t count, int H, int d) {
  const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / L;
  const int e = int(threadIdx.x % L) * SIZE;
  const int64_t unit = at < count * H ? at : 0;
  const int64_t m = unit / H, h = unit % H;
  return {m, unit * d + e, int64_t(H) * d, (m * W * H + h) * d + e, at < count * H && e < d};
}

template <typename T, int L, int W>
__global__ void __launch_bounds__(THREADS) forward(
    const T* q, const T* k, const T* v, const int64_t* windows, T* out, int64_t count, int H, int d, float scale) {
  using Vec = Vector<T>;
  const Place p = place<L, W, Vec::SIZE>(count, H, d);
  const Vec query = Vec::load(q + p.row, p.real);
  float share[W];
#pragma unroll
  for (int w = 0; w < W; ++w) share[w] = dot<L, T>(query, Vec::load(k + p.first + w * p.step, p.real)) * scale;
  softmax<W>(share, windows, p.m);
  Vec sum{};
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const Vec value = Vec::load(v + p.first + w * p.step, p.real);
    for (int i = 0; i < Vec::SIZE; ++i) sum.x[i] += share[w] * value.x[i];
  }
  sum.store(out + p.row, p.real);
}

template <typename T, int L, int W>
__global__ void __launch_bounds__(THREADS) backward(
    const T* grad, const T* q, const T* k, const T* v, const int64_t* windows, T* of_q, T* of_k, T* of_v,
    int64_t count, int H, int d, float scale) {
  using Vec = Vector<T>;
  const Place p = place<L, W, Vec::SIZE>(count, H, d);
  const Vec query = Vec::load(q + p.row, p.real), slope = Vec::load(grad + p.row, p.real);
  Vec key[W], sum{};
  float share[W], of_share[W], mean = 0.0f;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    key[w] = Vec::load(k + p.first + w * p.step, p.real);
    share[w] = dot<L, T>(query, key[w]) * scale;
    of_share[w] = dot<L, T>(slope, Vec::load(v + p.first + w * p.step, p.real));
  }
  softmax<W>(share, windows, p.m);
#pragma unroll
  for (int w = 0; w < W; ++w) mean += share[w] * of_share[w];
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const float of_score = share[w] * (of_share[w] - mean) * scale;
    Vec key_slope, value_slope;
    for (int i = 0; i < Vec::SIZE; ++i) {
      sum.x[i] += of_score * key[w].x[i];
      key_slope.x[i] = of_score * query.x[i];
      value_slope.x[i] = share[w] * slope.x[i];
    }
    key_slope.store(of_k + p.first + w * p.step, p.real);
    value_slope.store(of_v + p.first + w * p.step, p.real);
  }
  sum.store(of_q + p.row, p.real);
}

struct Arguments {
  const void *grad, *q, *k, *v;
  const int64_t* windows;
  void *out, *of_k, *of_v;
  int64_t count;
  int H, d;
  cudaStream_t stream;
};

template <typename T, int L, int W>
int run(const Arguments& a) {
  const unsigned blocks = unsigned((a.count * a.H * L + THREADS - 1) / THREADS);
  const float scale = 1.0f / sqrtf(float(a.d));
  const T *q = static_cast<const T*>(a.q), *k = static_cast<const T*>(a.k), *v = static_cast<const T*>(a.v);
  T* out = static_cast<T*>(a.out);
  if (blocks == 0) return 0;
  if (a.grad == nullptr) {
    LAUNCH((forward<T, L, W>), blocks, THREADS, a.stream, q, k, v, a.windows, out, a.count, a.H, a.d, scale);
  } else {
    LAUNCH((backward<T, L, W>), blocks, THREADS, a.stream, static_cast<const T*>(a.grad), q, k, v, a.windows, out,
           static_cast<T*>(a.of_k), static_cast<T*>(a.of_v), a.count, a.H, a.d, scale);
  }
  return int(cudaGetLastError());
}

template <typename T, int W>
int lanes(const Arguments& a) {
  const int needed = a.d / Vector<T>::SIZE;
  if (needed <= 8) return run<T, 8, W>(a);
  return needed <= 16 ? run<T, 16, W>(a) : run<T, 32, W>(a);
}

int size(const Arguments& a, int W, bool half) {
  if (W == 4) return half ? lanes<__nv_bfloat16, 4>(a) : lanes<float, 4>(a);
  if (W == 9) return half ? lanes<__nv_bfloat16, 9>(a) : lanes<float, 9>(a);
  return -1;
}

}  // namespace

// Each returns 0, a cudaError, or -1 for a shape it does not know (windows of 4 and 9; d a multiple of 16 bytes and at
// most 128 numbers). bfloat16 where `half`, else float32.
extern "C" int molmo_pool_patches(
    const void* q, const void* k, const void* v, const int64_t* windows, void* out,
    int64_t count, int H, int d, int W, int half, void* stream) {
  return size({nullptr, q, k, v, windows, out, nullptr, nullptr, count, H, d, cudaStream_t(stream)}, W, half != 0);
}

extern "C" int molmo_pool_patches_backward(
    const void* grad, const void* q, const void* k, const void* v, const int64_t* windows, void* of_q, void* of_k,
    void* of_v, int64_t count, int H, int d, int W, int half, void* stream) {
  return size({grad, q, k, v, windows, of_q, of_k, of_v, count, H, d, cudaStream_t(stream)}, W, half != 0);
}
