// Copies between host and device, and those that may be late: what nobody waited for has not happened.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <c10/core/CPUAllocator.h>
#include <vector>
#include "device.h"

namespace twin {

// The same memory as a CPU tensor.
inline at::Tensor lent(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  const c10::Storage& owner = tensor.storage();
  auto* kept = new c10::Storage(owner);
  c10::DataPtr pointer(
      owner.mutable_data(), kept, [](void* storage) { delete static_cast<c10::Storage*>(storage); },
      c10::Device(c10::DeviceType::CPU));
  c10::Storage alias(
      c10::Storage::use_byte_size_t(), owner.nbytes(), std::move(pointer), c10::GetCPUAllocator(), true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(
      std::move(alias), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return out;
}

struct LateCopy {
  at::Tensor host;      // pinned
  at::Tensor snapshot;  // what the device held, or what the host held, when the copy was asked for
  bool to_host;
};

inline std::mutex late_lock;
inline std::vector<LateCopy> late_copies;
inline bool late = false;                // whether copies that need no wait are late
inline std::atomic<long> overwritten{0};  // pinned memory that changed before its copy to the device was waited for

inline void (*on_wait)() = nullptr;  // told of each wait

// The host waits for the device: copies under way end.
inline void wait() {
  ++waits;
  if (on_wait) on_wait();
  std::vector<LateCopy> ending;
  {
    std::lock_guard<std::mutex> guard(late_lock);
    ending.swap(late_copies);
  }
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  for (auto& copy : ending) {
    if (copy.to_host) copy.host.copy_(copy.snapshot);
    else if (!at::equal(copy.host, copy.snapshot)) ++overwritten;
  }
}

// Copies of the same host memory follow each other on a stream: an earlier one to the host has happened when the next
// begins, and one from the host has read what the next overwrites.
inline void settle(const at::Tensor& host) {
  std::vector<LateCopy> ending;
  {
    std::lock_guard<std::mutex> guard(late_lock);
    for (auto copy = late_copies.begin(); copy != late_copies.end();) {
      const bool same = copy->host.storage().data() == host.storage().data();
      if (same) ending.push_back(*copy);
      copy = same ? late_copies.erase(copy) : copy + 1;
    }
  }
  for (auto& copy : ending) {
    if (copy.to_host) copy.host.copy_(copy.snapshot);
    else if (!at::equal(copy.host, copy.snapshot)) ++overwritten;
  }
}

inline void delay(const at::Tensor& host, const at::Tensor& device, bool to_host) {
  const at::Tensor snapshot = to_host ? lent(device).to(host.scalar_type(), false, true) : host.clone();
  if (to_host && host.is_floating_point()) host.fill_(std::numeric_limits<double>::quiet_NaN());
  else if (to_host) host.fill_(host.scalar_type() == at::kBool ? 1 : -1);
  std::lock_guard<std::mutex> guard(late_lock);
  late_copies.push_back({host, snapshot, to_host});
}

inline at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  if (self.is_cuda() == source.is_cuda()) {
    lent(self).copy_(lent(source));
    return self;
  }
  const at::Tensor& host = self.is_cuda() ? source : self;
  const bool waits_for_it = !non_blocking || !PinnedAllocator::holds(host.storage().data());
  if (waits_for_it) wait();
  const bool delayed = late && !waits_for_it;
  if (delayed) settle(host);
  if (!delayed || self.is_cuda()) lent(self).copy_(lent(source));
  if (delayed) delay(host, self.is_cuda() ? self : source, !self.is_cuda());
  return self;
}

}  // namespace twin
