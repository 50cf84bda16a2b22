// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/tensor.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "fovea/core/memory.h"

namespace fovea {
namespace {

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= std::max<int64_t>(shape[axis], 1);
  }
  return strides;
}

// Calls row(a_offset, b_offset, count) for each run along the last axis; offsets in elements.
void for_each_row(const Shape& shape, const Shape& a, const Shape& b,
                  const std::function<void(int64_t, int64_t, int64_t)>& row) {
  if (shape.count() == 0) return;
  const int rank = shape.rank();
  if (rank == 0) return row(0, 0, 1);
  std::array<int64_t, Shape::kMaxRank> index{};
  for (;;) {
    int64_t at_a = 0, at_b = 0;
    for (int axis = 0; axis + 1 < rank; ++axis) {
      at_a += index[static_cast<size_t>(axis)] * a[axis];
      at_b += index[static_cast<size_t>(axis)] * b[axis];
    }
    row(at_a, at_b, shape[rank - 1]);
    int axis = rank - 2;
    for (; axis >= 0; --axis) {
      if (++index[static_cast<size_t>(axis)] < shape[axis]) break;
      index[static_cast<size_t>(axis)] = 0;
    }
    if (axis < 0) return;
  }
}

template <typename From, typename To>
void convert(const Tensor& source, const Tensor& target) {
  const From* from = source.data<From>();
  To* to = target.data<To>();
  const int last = source.rank() - 1;
  const int64_t step_from = last < 0 ? 1 : source.stride(last), step_to = last < 0 ? 1 : target.stride(last);
  for_each_row(source.shape(), source.strides(), target.strides(), [&](int64_t f, int64_t t, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const float x = to_float(from[f + i * step_from]);
      To& out = to[t + i * step_to];
      if constexpr (std::is_same_v<To, float>) out = x;
      if constexpr (std::is_same_v<To, Half>) out = to_half(x);
      if constexpr (std::is_same_v<To, BFloat16>) out = to_bfloat16(x);
    }
  });
}

template <typename From>
void convert_from(const Tensor& source, const Tensor& target) {
  switch (target.dtype()) {
    case DType::f16:
      return convert<From, Half>(source, target);
    case DType::bf16:
      return convert<From, BFloat16>(source, target);
    default:
      return convert<From, float>(source, target);
  }
}

}  // namespace

Shape::Shape(std::span<const int64_t> values) {
  require(values.size() <= kMaxRank, "a tensor of rank ", values.size(), " exceeds the limit of ", kMaxRank,
          " axes");
  std::copy(values.begin(), values.end(), values_.begin());
  rank_ = static_cast<int>(values.size());
}

void Shape::push_back(int64_t value) {
  require(rank_ < kMaxRank, "a tensor may have at most ", kMaxRank, " axes");
  values_[static_cast<size_t>(rank_++)] = value;
}

void Shape::erase(int axis) {
  std::copy(begin() + axis + 1, end(), values_.begin() + axis);
  --rank_;
}

int64_t Shape::count() const {
  int64_t product = 1;
  bool overflow = false;
  for (int64_t value : *this) {
    if (value == 0) return 0;
    overflow = overflow || value < 0 || __builtin_mul_overflow(product, value, &product);
  }
  require(!overflow, "shape ", *this, " has too many elements");
  return product;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) text += (axis ? "," : "") + std::to_string((*this)[axis]);
  return text + "]";
}

bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  if (!device.is_cpu())
    throw Error("no memory can be allocated on " + device.name() + ": this build has no backend for it",
                ErrorCode::unsupported);
  for (int64_t size : shape) require(size >= 0, "shape ", shape, " has a negative size");
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(shape.count(), size_of(dtype), &bytes), "shape ", shape, " is too large");
  Tensor result;
  auto block = memory::allocate(bytes);
  result.data_ = block.get();
  result.owner_ = std::move(block);
  result.shape_ = shape;
  result.strides_ = contiguous_strides(shape);
  result.dtype_ = dtype;
  return result;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
  Tensor result = empty(shape, dtype);
  std::memset(result.data_, 0, static_cast<size_t>(result.bytes()));
  return result;
}

Tensor Tensor::full(const Shape& shape, float value) {
  Tensor result = empty(shape);
  std::fill_n(result.data<float>(), result.size(), value);
  return result;
}

Tensor Tensor::wrap(void* data, const Shape& shape, const Shape& strides, DType dtype,
                    std::shared_ptr<const void> owner, Device device) {
  require(shape.rank() == strides.rank(), "Tensor::wrap: shape and strides differ in rank");
  Tensor result;
  result.owner_ = std::move(owner);
  result.data_ = data;
  result.shape_ = shape;
  result.strides_ = strides;
  result.dtype_ = dtype;
  result.device_ = device;
  return result;
}

Tensor Tensor::wrap(void* data, const Shape& shape, DType dtype, std::shared_ptr<const void> owner) {
  return wrap(data, shape, contiguous_strides(shape), dtype, std::move(owner));
}

int Tensor::checked_axis(int axis) const {
  const int wrapped = axis < 0 ? axis + rank() : axis;
  require(wrapped >= 0 && wrapped < rank(), "axis ", axis, " does not exist in a tensor of shape ", shape_);
  return wrapped;
}

void Tensor::check_type(DType wanted) const {
  require(wanted == dtype_, "a tensor of type ", name_of(dtype_), " was read as ", name_of(wanted));
}

int64_t Tensor::offset_of(std::span<const int64_t> indices) const {
  bool inside = static_cast<int>(indices.size()) == rank();
  int64_t offset = 0;
  for (int axis = 0; inside && axis < rank(); ++axis) {
    const int64_t i = indices[static_cast<size_t>(axis)];
    inside = i >= 0 && i < shape_[axis];
    offset += i * strides_[axis];
  }
  // The message is built on failure only: tests walk whole tensors through here.
  if (!inside) [[unlikely]]
    require(false, "index ", Shape(indices).to_string(), " is outside shape ", shape_);
  return offset;
}

bool Tensor::is_contiguous() const {
  const Shape expected = contiguous_strides(shape_);
  for (int axis = 0; axis < rank(); ++axis)
    if (shape_[axis] > 1 && strides_[axis] != expected[axis]) return size() == 0;
  return true;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end, int64_t step) const {
  axis = checked_axis(axis);
  require(begin >= 0 && begin <= end && end <= shape_[axis] && step >= 1, "slice ", begin, ":", end, ":",
          step, " is outside axis ", axis, " of shape ", shape_);
  Tensor result = *this;
  result.data_ = static_cast<char*>(data_) + begin * strides_[axis] * size_of(dtype_);
  result.shape_[axis] = (end - begin + step - 1) / step;
  result.strides_[axis] = strides_[axis] * step;
  return result;
}

Tensor Tensor::select(int axis, int64_t index) const {
  axis = checked_axis(axis);
  Tensor result = slice(axis, index, index + 1);
  result.shape_.erase(axis);
  result.strides_.erase(axis);
  return result;
}

Tensor Tensor::transpose(int a, int b) const {
  Tensor result = *this;
  a = checked_axis(a);
  b = checked_axis(b);
  std::swap(result.shape_[a], result.shape_[b]);
  std::swap(result.strides_[a], result.strides_[b]);
  return result;
}

Tensor Tensor::unsqueeze(int axis) const {
  if (axis < 0) axis += rank() + 1;
  require(axis >= 0 && axis <= rank(), "unsqueeze: no axis ", axis);
  Tensor result = *this;
  result.shape_.push_back(1);
  result.strides_.push_back(1);
  for (int i = rank(); i > axis; --i) {
    result.shape_[i] = shape_[i - 1];
    result.strides_[i] = strides_[i - 1];
  }
  result.shape_[axis] = 1;
  result.strides_[axis] = 0;
  return result;
}

Tensor Tensor::expand(const Shape& shape) const {
  require(shape.rank() == rank(), "expand: ", shape_, " and ", shape, " differ in rank");
  Tensor result = *this;
  for (int axis = 0; axis < rank(); ++axis) {
    if (shape_[axis] == shape[axis]) continue;
    require(shape_[axis] == 1, "expand: axis ", axis, " of ", shape_, " cannot become ", shape[axis]);
    result.shape_[axis] = shape[axis];
    result.strides_[axis] = 0;
  }
  return result;
}

Tensor Tensor::reshape(const Shape& shape) const {
  require(shape.count() == size(), "reshape: ", shape_, " does not have the elements of ", shape);
  Tensor result = *this;
  result.shape_ = shape;
  if (is_contiguous()) {
    result.strides_ = contiguous_strides(shape);
    return result;
  }
  // Walk both shapes from the right, matching groups of equal element count; each old group must be evenly
  // strided.
  result.strides_ = shape;
  int old_axis = rank() - 1, new_axis = shape.rank() - 1;
  while (old_axis >= 0 || new_axis >= 0) {
    int64_t old_count = 1, new_count = 1;
    const int64_t base = old_axis >= 0 ? strides_[old_axis] : 1;
    do {
      if (old_count <= new_count && old_axis >= 0) {
        require(shape_[old_axis] == 1 || old_count == 1 || strides_[old_axis] == base * old_count,
                "reshape: a view of ", shape_, " cannot take shape ", shape, " without a copy");
        old_count *= shape_[old_axis--];
      } else if (new_axis >= 0) {
        result.strides_[new_axis] = base * new_count;
        new_count *= shape[new_axis--];
      }
    } while (old_count != new_count);
  }
  return result;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor result = empty(shape_, dtype_, device_);
  result.copy_from(*this);
  return result;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  require(is_float(dtype_) && is_float(dtype), "cannot convert ", name_of(dtype_), " to ", name_of(dtype));
  Tensor result = empty(shape_, dtype, device_);
  if (dtype_ == DType::f32) convert_from<float>(*this, result);
  if (dtype_ == DType::f16) convert_from<Half>(*this, result);
  if (dtype_ == DType::bf16) convert_from<BFloat16>(*this, result);
  return result;
}

void Tensor::copy_from(const Tensor& source) const {
  require(source.shape_ == shape_ && source.dtype_ == dtype_, "cannot copy ", source.describe(), " into ",
          describe());
  const int64_t width = size_of(dtype_);
  const auto* from = static_cast<const char*>(source.data_);
  auto* to = static_cast<char*>(data_);
  const int last = rank() - 1;
  const bool dense_rows = rank() == 0 || (strides_[last] == 1 && source.strides_[last] == 1);
  for_each_row(shape_, strides_, source.strides_, [&](int64_t t, int64_t f, int64_t n) {
    if (dense_rows) {
      std::memcpy(to + t * width, from + f * width, static_cast<size_t>(n * width));
      return;
    }
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(to + (t + i * strides_[last]) * width, from + (f + i * source.strides_[last]) * width,
                  static_cast<size_t>(width));
  });
}

std::string Tensor::describe() const { return std::string(name_of(dtype_)) + shape_.to_string(); }

}  // namespace fovea
