// The twin's memory: malloc under the name of CUDA, NaN where nothing was written, and pinned memory that is counted.
#pragma once
#include <c10/core/Allocator.h>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace twin {

constexpr std::size_t ALIGNED = 64;

inline thread_local c10::DeviceIndex current_device = 0;
inline std::atomic<long> bytes_held{0};
inline std::atomic<long> bytes_peak{0};

inline void hold(long bytes) {
  const long now = bytes_held += bytes;
  if (now > bytes_peak) bytes_peak = now;
}

inline void* aligned(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, ALIGNED, bytes)) throw std::bad_alloc();
  return memory;
}

// Device memory. Its size stands in the ALIGNED bytes before it.
struct DeviceAllocator final : c10::Allocator {
  static void release(void* memory) {
    if (!memory) return;
    char* base = static_cast<char*>(memory) - ALIGNED;
    bytes_held -= *reinterpret_cast<long*>(base);
    std::free(base);
  }
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device device(c10::DeviceType::CUDA, current_device);
    if (!bytes) return {nullptr, nullptr, &release, device};
    char* base = static_cast<char*>(aligned(bytes + ALIGNED));
    *reinterpret_cast<long*>(base) = static_cast<long>(bytes);
    void* memory = base + ALIGNED;
    std::memset(memory, 0xFF, bytes);  // NaN in every type of floating point: a read before the write shows
    hold(static_cast<long>(bytes));
    return {memory, memory, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

// Host memory that a copy need not wait for.
struct PinnedAllocator final : c10::Allocator {
  inline static std::mutex lock;
  inline static std::map<const char*, std::size_t> ranges;  // begin -> bytes

  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> guard(lock);
      ranges.erase(static_cast<char*>(memory));
    }
    std::free(memory);
  }
  static bool holds(const void* pointer) {
    const char* at = static_cast<const char*>(pointer);
    std::lock_guard<std::mutex> guard(lock);
    auto next = ranges.upper_bound(at);
    if (next == ranges.begin()) return false;
    --next;
    return at < next->first + next->second;
  }
  c10::DataPtr allocate(std::size_t bytes) override {
    const std::size_t size = bytes ? bytes : ALIGNED;
    void* memory = aligned(size);
    std::lock_guard<std::mutex> guard(lock);
    ranges[static_cast<char*>(memory)] = size;
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

inline DeviceAllocator device_memory;
inline PinnedAllocator pinned_memory;

}  // namespace twin
