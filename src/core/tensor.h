// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fovea/core/device.h"
#include "fovea/core/dtype.h"
#include "fovea/core/error.h"

struct DLManagedTensor;

namespace fovea {

/// Sizes or strides of at most kMaxRank axes.
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> values)
      : Shape(std::span<const int64_t>(values.begin(), values.size())) {}
  explicit Shape(std::span<const int64_t> values);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return values_[static_cast<size_t>(axis)]; }
  int64_t& operator[](int axis) { return values_[static_cast<size_t>(axis)]; }
  const int64_t* begin() const { return values_.data(); }
  const int64_t* end() const { return values_.data() + rank_; }
  void push_back(int64_t value);
  void erase(int axis);

  /// Product of all values; 1 for rank 0. Throws on overflow.
  int64_t count() const;
  /// "[2,4,37,32]"
  std::string to_string() const;
  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::array<int64_t, kMaxRank> values_{};
  int rank_ = 0;
};

/// A typed, strided view of shared storage: a handle, cheap to copy, whose copies see the same elements.
///
/// Storage is aligned to 64 bytes and counted by `memory::`. Strides are in elements and may be zero
/// (broadcast).
class Tensor {
 public:
  /// No tensor at all (`defined()` is false): an absent optional input.
  Tensor() = default;

  /// Uninitialised elements.
  static Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu());
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32);
  static Tensor full(const Shape& shape, float value);
  template <typename T>
  static Tensor from(std::span<const T> values, const Shape& shape);
  template <typename T>
  static Tensor from(const std::vector<T>& values, const Shape& shape) {
    return from(std::span<const T>(values), shape);
  }
  /// A view of memory that `owner` keeps alive (nullptr: the caller does).
  static Tensor wrap(void* data, const Shape& shape, const Shape& strides, DType dtype,
                     std::shared_ptr<const void> owner = nullptr, Device device = Device::cpu());
  static Tensor wrap(void* data, const Shape& shape, DType dtype,
                     std::shared_ptr<const void> owner = nullptr);

  bool defined() const { return data_ != nullptr || owner_ != nullptr; }
  explicit operator bool() const { return defined(); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  /// Negative axes count from the end.
  int64_t dim(int axis) const { return shape_[checked_axis(axis)]; }
  int64_t stride(int axis) const { return strides_[checked_axis(axis)]; }
  int64_t size() const { return shape_.count(); }
  int64_t bytes() const { return size() * size_of(dtype_); }

  void* raw() const { return data_; }
  /// The first element; throws when T is not the tensor's type.
  template <typename T>
  T* data() const {
    check_type(DTypeOf<T>::value);
    return static_cast<T*>(data_);
  }
  /// Element access by index, for tests and small host-side loops.
  template <typename T, typename... I>
  T& at(I... index) const {
    check_type(DTypeOf<T>::value);
    const std::array<int64_t, sizeof...(I)> indices{static_cast<int64_t>(index)...};
    return static_cast<T*>(data_)[offset_of(indices)];
  }

  bool is_contiguous() const;
  /// Views; none of these copies.
  Tensor slice(int axis, int64_t begin, int64_t end, int64_t step = 1) const;
  Tensor select(int axis, int64_t index) const;
  Tensor transpose(int a, int b) const;
  Tensor unsqueeze(int axis) const;
  Tensor expand(const Shape& shape) const;
  /// A view where strides allow it; throws otherwise.
  Tensor reshape(const Shape& shape) const;

  /// Itself when already contiguous, else a copy.
  Tensor contiguous() const;
  Tensor clone() const;
  /// Conversion between float types (round to nearest even), or itself when the type is already `dtype`.
  Tensor to(DType dtype) const;
  /// Copies all elements from a tensor of the same shape and type.
  void copy_from(const Tensor& source) const;

  /// "f32[2,4,37,32]"
  std::string describe() const;

 private:
  int checked_axis(int axis) const;
  void check_type(DType wanted) const;
  int64_t offset_of(std::span<const int64_t> indices) const;

  std::shared_ptr<const void> owner_;
  void* data_ = nullptr;
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
  Device device_;
};

/// DLPack out: the consumer calls the returned object's deleter. The tensor's storage stays alive until then.
DLManagedTensor* to_dlpack(const Tensor& tensor);
/// DLPack in: takes ownership of `managed`. Throws for types or devices Fovea does not have.
Tensor from_dlpack(DLManagedTensor* managed);

template <typename T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
  require(static_cast<int64_t>(values.size()) == shape.count(), "Tensor::from: ", values.size(),
          " values do not fill shape ", shape.to_string());
  Tensor result = empty(shape, DTypeOf<T>::value);
  std::copy(values.begin(), values.end(), static_cast<T*>(result.data_));
  return result;
}

}  // namespace fovea
