// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/growing_rows.h"

#include <algorithm>
#include <cstring>

#include "fovea/core/memory.h"

namespace fovea::cache {
namespace {

constexpr int64_t kFirstCapacity = 64;
constexpr int64_t kRowsPerBlock = 1024;  // of a saved cache: lanes take turns in blocks of rows

}  // namespace

GrowingRows::GrowingRows(const GrowingRows& other)
    : block_(other.block_),
      lanes_(other.lanes_),
      row_bytes_(other.row_bytes_),
      rows_(other.rows_),
      capacity_(other.capacity_) {
  reallocate(capacity_);
}

GrowingRows& GrowingRows::operator=(const GrowingRows& other) {
  GrowingRows copy(other);
  *this = std::move(copy);
  return *this;
}

void GrowingRows::reallocate(int64_t capacity) {
  int64_t lane = 0, bytes = 0;
  require(
      !__builtin_mul_overflow(capacity, row_bytes_, &lane) && !__builtin_mul_overflow(lane, lanes_, &bytes),
      "cache: ", capacity, " tokens are too many");
  auto block = std::static_pointer_cast<std::byte>(memory::allocate(bytes));
  for (int64_t l = 0; l < lanes_ && rows_ > 0; ++l)
    std::memcpy(block.get() + l * lane, row<std::byte>(l, 0), static_cast<size_t>(rows_ * row_bytes_));
  block_ = std::move(block);
  capacity_ = capacity;
}

void GrowingRows::resize(int64_t rows) {
  if (rows > capacity_) reallocate(std::max({rows, 2 * capacity_, kFirstCapacity}));
  rows_ = rows;
}

Tensor GrowingRows::view(DType dtype, int64_t first, int64_t count) const {
  const int64_t width = row_bytes_ / size_of(dtype);
  return Tensor::wrap(row<std::byte>(0, first), {lanes_, count, width}, {capacity_ * width, width, 1}, dtype,
                      block_);
}

void GrowingRows::save(ByteWriter& out) const {
  for (int64_t first = 0; first < rows_; first += kRowsPerBlock)
    for (int64_t l = 0; l < lanes_; ++l)
      out.bytes(row<std::byte>(l, first), std::min(kRowsPerBlock, rows_ - first) * row_bytes_);
}

void GrowingRows::load(ByteReader& in, int64_t rows) {
  rows_ = 0;
  for (int64_t first = 0; first < rows; first += kRowsPerBlock) {
    const int64_t count = std::min(kRowsPerBlock, rows - first);
    resize(first + count);
    for (int64_t l = 0; l < lanes_; ++l) in.bytes(row<std::byte>(l, first), count * row_bytes_);
  }
}

}  // namespace fovea::cache
