// Registers the twin with PyTorch: a device "cuda" whose memory is the host's. Loaded before torch is imported.
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include "operators.h"

namespace {
using twin::Guard;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Registered {
  Registered() { c10::SetAllocator(c10::DeviceType::CUDA, &twin::device_memory); }
} registered;
}  // namespace

namespace at {
using TwinHooks = twin::Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, TwinHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&twin::on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", twin::empty);
  library.impl("empty_strided", twin::empty_strided);
  library.impl("copy_", twin::copy_);
  library.impl("_local_scalar_dense", twin::item);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("resize_", twin::resize_);
  library.impl("set_", at::native::set_cpu_);
  library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  library.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  library.impl("set_.source_Tensor", at::native::set_tensor_);
}

TORCH_LIBRARY_IMPL(c10d, CUDA, library) {  // collectives in place, by gloo
  for (const char* name :
       {"send", "recv_", "recv_any_source_", "reduce_", "broadcast_", "allreduce_", "allreduce_coalesced_",
        "allgather_", "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_",
        "reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "gather_", "scatter_",
        "alltoall_", "alltoall_base_", "barrier"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&twin::on_host>());
}

extern "C" {
void twin_start(int devices) { twin::devices = static_cast<c10::DeviceIndex>(devices); }
int twin_devices() { return twin::devices; }
int twin_get_device() { return twin::current_device; }
void twin_set_device(int index) { twin::current_device = static_cast<c10::DeviceIndex>(index); }
void twin_wait() { twin::wait(); }
long twin_waits() { return twin::waits; }
long twin_bytes_held() { return twin::bytes_held; }
long twin_bytes_peak() { return twin::bytes_peak; }
void twin_reset_peak() { twin::bytes_peak = twin::bytes_held.load(); }
void twin_on_wait(void (*told)()) { twin::on_wait = told; }
void twin_late(int late) { twin::late = late; }
long twin_overwritten() { return twin::overwritten; }
}
