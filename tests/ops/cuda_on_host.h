// Runs CUDA kernels as plain C++: each thread of a block is a thread of the host, a shuffle meets at a barrier.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define MOLMO_HOST
#define THREADS 32  // one warp
#define __global__
#define __device__
#define __launch_bounds__(x)

struct Index { unsigned x; };
inline thread_local Index threadIdx, blockIdx;
struct uint4 { unsigned x, y, z, w; };
using cudaStream_t = void*;
inline int cudaGetLastError() { return 0; }
inline float __expf(float x) { return std::exp(x); }

struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline __nv_bfloat16 __float2bfloat16(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float shared_lanes[THREADS];
inline std::unique_ptr<std::barrier<>> meeting;
inline float __shfl_xor_sync(unsigned, float x, int step) {
  const unsigned lane = threadIdx.x;
  shared_lanes[lane] = x;
  meeting->arrive_and_wait();
  const float other = shared_lanes[lane ^ unsigned(step)];
  meeting->arrive_and_wait();
  return other;
}

template <typename Kernel>
void on_host(Kernel kernel, unsigned blocks, unsigned threads) {
  for (unsigned block = 0; block < blocks; ++block) {
    meeting = std::make_unique<std::barrier<>>(threads);
    std::vector<std::thread> all;
    for (unsigned i = 0; i < threads; ++i)
      all.emplace_back([=] {
        threadIdx.x = i, blockIdx.x = block;
        kernel();
      });
    for (auto& one : all) one.join();
  }
}
#define LAUNCH(kernel, blocks, threads, stream, ...) on_host([=] { kernel(__VA_ARGS__); }, blocks, threads)
