// Every operator of a CUDA tensor runs PyTorch's CPU kernel over the same memory.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/resize_native.h>
#include <torch/library.h>
#include <set>
#include "copies.h"

namespace twin {

// Operators that take tensors of the CPU beside those of a GPU.
inline const std::set<std::string> MIXED{
    "aten::index", "aten::_index_put_impl_", "aten::index_put_", "aten::index_put",
    "aten::_copy_from_and_resize", "aten::_copy_from", "c10d::barrier"};
// Operators whose result has a size that the host reads from the device.
inline const std::set<std::string> READ_BACK{
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
    "aten::unique_dim_consecutive", "aten::equal", "aten::bincount", "aten::is_nonzero", "aten::repeat_interleave"};

// New memory is that of the tensor's device, whichever is current.
inline const at::Tensor& resize_(
    const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(self.device());
  return at::native::resize_(self, size, format);
}

// One call: which tensors were lent, and how results become CUDA tensors again.
class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : op_(op), device_(current_device) {}

  c10::IValue lend(const c10::IValue& value) {
    if (value.isTensor()) return lend(value.toTensor());
    if (value.isDevice()) {
      if (value.toDevice().index() >= 0) device_ = value.toDevice().index();
      return c10::Device(c10::DeviceType::CPU);
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const auto& tensor : value.toTensorVector()) out.push_back(lend(tensor));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (std::optional<at::Tensor> tensor : value.toOptionalTensorList())
        out.push_back(tensor ? std::optional<at::Tensor>(lend(*tensor)) : std::nullopt);
      return out;
    }
    if (is_nested(value)) {
      c10::List<c10::List<at::Tensor>> out;
      for (const auto& one : value.toListRef()) out.push_back(lend(one).toTensorList());
      return out;
    }
    return value;
  }

  // Refuses what a GPU refuses: tensors with dimensions of both kinds.
  void check() const {
    const std::string& name = op_.schema().name();
    TORCH_CHECK(
        !(host_ && !lent_.empty()) || MIXED.count(name),
        "Expected all tensors to be on the same device, but found cuda and cpu in ", name, " (", host_type_, ")");
  }

  // Arguments whose sizes the operator changed.
  void resize() const {
    for (const auto& [device, host] : lent_) {
      if (host.storage().data() != device.storage().data()) {
        twin::resize_(device, host.sizes(), std::nullopt);
        lent(device).copy_(host);
      } else if (host.sizes() != device.sizes()) {
        device.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
  }

  c10::IValue take_back(const c10::IValue& value) const {
    if (value.isTensor()) return take_back(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const auto& tensor : value.toTensorVector()) out.push_back(take_back(tensor));
      return out;
    }
    if (is_nested(value)) {
      c10::List<c10::List<at::Tensor>> out;
      for (const auto& one : value.toListRef()) out.push_back(take_back(one).toTensorList());
      return out;
    }
    return value;
  }

 private:
  static bool is_nested(const c10::IValue& value) {
    return value.isList() && value.toListRef().size() && value.toListRef()[0].isTensorList();
  }

  at::Tensor lend(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      if (tensor.defined() && tensor.is_cpu() && tensor.dim() > 0) {
        host_ = true;
        host_type_ = c10::toString(tensor.scalar_type());
      }
      return tensor;
    }
    const at::Tensor host = lent(tensor);
    if (lent_.empty()) device_ = tensor.device().index();
    lent_.emplace_back(tensor, host);
    return host;
  }

  // An argument itself, a view of an argument's storage, or new memory that becomes the device's.
  at::Tensor take_back(const at::Tensor& tensor) const {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (const auto& [device, host] : lent_)
      if (tensor.unsafeGetTensorImpl() == host.unsafeGetTensorImpl()) return device;
    for (const auto& [device, host] : lent_)
      if (tensor.storage().data() && tensor.storage().data() == host.storage().data())
        return like(tensor, c10::Storage(device.storage()));
    auto* kept = new c10::Storage(tensor.storage());
    const std::size_t bytes = kept->nbytes();
    hold(static_cast<long>(bytes));
    c10::DataPtr pointer(
        kept->mutable_data(), kept,
        [](void* storage) {
          bytes_held -= static_cast<c10::Storage*>(storage)->nbytes();
          delete static_cast<c10::Storage*>(storage);
        },
        cuda(device_));
    return like(tensor, c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(pointer), &device_memory, true));
  }

  static at::Tensor like(const at::Tensor& tensor, c10::Storage storage) {
    auto out = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), tensor.dtype());
    out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    return out;
  }

  const c10::OperatorHandle& op_;
  std::vector<std::pair<at::Tensor, at::Tensor>> lent_;  // device, host
  c10::DeviceIndex device_;
  bool host_ = false;  // a tensor of the CPU with dimensions is among the arguments
  std::string host_type_;
};

inline void on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::size_t arguments = op.schema().arguments().size();
  const std::size_t results = op.schema().returns().size();
  if (READ_BACK.count(op.schema().name())) wait();
  Call call(op);
  for (std::size_t i = stack->size() - arguments; i < stack->size(); ++i) (*stack)[i] = call.lend((*stack)[i]);
  call.check();
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.resize();
  for (std::size_t i = stack->size() - results; i < stack->size(); ++i) (*stack)[i] = call.take_back((*stack)[i]);
}

inline at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device> device,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(type), format);
}

inline at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      size, stride, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(type));
}

inline at::Scalar item(const at::Tensor& tensor) {
  wait();
  return at::native::_local_scalar_dense_cpu(lent(tensor));
}

}  // namespace twin
