// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fovea/cache/byte_stream.h"
#include "fovea/core/tensor.h"

namespace fovea::cache {

/// Columns ("lanes", one per head) of equally long rows that grow together: row r of lane l lies at
/// (l * capacity + r) * row_bytes, so a lane is contiguous. Capacity doubles; copies are deep; views keep
/// their memory alive but do not follow growth.
class GrowingRows {
 public:
  GrowingRows() = default;
  GrowingRows(int64_t lanes, int64_t row_bytes) : lanes_(lanes), row_bytes_(row_bytes) {}
  GrowingRows(const GrowingRows& other);
  GrowingRows& operator=(const GrowingRows& other);
  GrowingRows(GrowingRows&&) noexcept = default;
  GrowingRows& operator=(GrowingRows&&) noexcept = default;

  int64_t rows() const { return rows_; }
  int64_t row_bytes() const { return row_bytes_; }
  /// Of the rows in use.
  int64_t bytes() const { return lanes_ * rows_ * row_bytes_; }
  /// Keeps what both sizes have; new rows are uninitialised.
  void resize(int64_t rows);

  template <typename T>
  T* row(int64_t lane, int64_t r) const {
    return reinterpret_cast<T*>(block_.get() + (lane * capacity_ + r) * row_bytes_);
  }
  /// Rows first .. first+count-1 as a tensor [lanes, count, row_bytes / size_of(dtype)].
  Tensor view(DType dtype, int64_t first, int64_t count) const;

  void save(ByteWriter& out) const;
  /// Becomes `rows` rows; memory grows with what really arrives.
  void load(ByteReader& in, int64_t rows);

 private:
  void reallocate(int64_t capacity);

  std::shared_ptr<std::byte> block_;
  int64_t lanes_ = 0, row_bytes_ = 0, rows_ = 0, capacity_ = 0;
};

}  // namespace fovea::cache
