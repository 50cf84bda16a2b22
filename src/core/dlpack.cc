// SPDX-License-Identifier: Apache-2.0
#include <dlpack/dlpack.h>

#include <vector>

#include "fovea/core/tensor.h"

namespace fovea {
namespace {

// What a managed tensor of ours points to: the handle and the arrays DLPack wants to see.
struct Export {
  DLManagedTensor managed;
  Tensor tensor;
  std::vector<int64_t> shape, strides;
};

DLDataType type_of(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * size_of(dtype));
  switch (dtype) {
    case DType::bf16:
      return {kDLBfloat, bits, 1};
    case DType::u8:
      return {kDLUInt, bits, 1};
    case DType::i8:
    case DType::i32:
    case DType::i64:
      return {kDLInt, bits, 1};
    default:
      return {kDLFloat, bits, 1};
  }
}

DType dtype_of(DLDataType type) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::u8, DType::i32, DType::i64}) {
    const DLDataType ours = type_of(dtype);
    if (ours.code == type.code && ours.bits == type.bits && type.lanes == 1) return dtype;
  }
  throw Error("DLPack tensor of type code " + std::to_string(type.code) + ", " + std::to_string(type.bits) +
              " bits, has no counterpart");
}

}  // namespace

DLManagedTensor* to_dlpack(const Tensor& tensor) {
  auto* self = new Export{{}, tensor, {}, {}};
  self->shape.assign(tensor.shape().begin(), tensor.shape().end());
  self->strides.assign(tensor.strides().begin(), tensor.strides().end());
  const auto device = tensor.device().is_cpu() ? kDLCPU : kDLCUDA;
  self->managed.dl_tensor = {.data = tensor.raw(),
                             .device = {device, tensor.device().index},
                             .ndim = tensor.rank(),
                             .dtype = type_of(tensor.dtype()),
                             .shape = self->shape.data(),
                             .strides = self->strides.data(),
                             .byte_offset = 0};
  self->managed.manager_ctx = self;
  self->managed.deleter = [](DLManagedTensor* managed) { delete static_cast<Export*>(managed->manager_ctx); };
  return &self->managed;
}

Tensor from_dlpack(DLManagedTensor* managed) {
  require(managed != nullptr, "from_dlpack: no tensor was given");
  // Owns the import from here on, whatever is thrown below.
  std::shared_ptr<const void> owner(managed, [](DLManagedTensor* m) {
    if (m->deleter != nullptr) m->deleter(m);
  });
  const DLTensor& source = managed->dl_tensor;
  require(source.device.device_type == kDLCPU || source.device.device_type == kDLCUDA,
          "from_dlpack: device type ", static_cast<int>(source.device.device_type), " is not supported");
  const Shape shape(std::span<const int64_t>(source.shape, static_cast<size_t>(source.ndim)));
  void* data = static_cast<char*>(source.data) + source.byte_offset;
  const DType dtype = dtype_of(source.dtype);
  const Device device =
      source.device.device_type == kDLCPU ? Device::cpu() : Device::cuda(source.device.device_id);
  if (source.strides == nullptr) {
    const Tensor dense = Tensor::wrap(data, shape, dtype);
    return Tensor::wrap(data, shape, dense.strides(), dtype, owner, device);
  }
  const Shape strides(std::span<const int64_t>(source.strides, static_cast<size_t>(source.ndim)));
  return Tensor::wrap(data, shape, strides, dtype, owner, device);
}

}  // namespace fovea
