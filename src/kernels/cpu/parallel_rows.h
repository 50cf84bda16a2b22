// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "fovea/core/tensor.h"
#include "fovea/core/thread_pool.h"

namespace fovea::kernels::cpu {

/// Calls body(begin, end, worker) for runs of rows that cover [0, rows). A run has at least about 2^15
/// elements
/// (`work` for each row): less is not worth waking a thread for.
template <typename Body>
void parallel_rows(int64_t rows, int64_t work, const Body& body) {
  constexpr int64_t kSmallestRun = 1 << 15;
  const int64_t run = std::max<int64_t>(1, kSmallestRun / std::max<int64_t>(1, work));
  parallel_for((rows + run - 1) / run,
               [&](int64_t task, int worker) { body(task * run, std::min(rows, (task + 1) * run), worker); });
}

/// The rows (last axis, contiguous) of an f32 tensor whose other axes have any strides.
class RowsView {
 public:
  explicit RowsView(const Tensor& tensor) : tensor_(tensor) {
    require(tensor.rank() >= 1 && tensor.dtype() == DType::f32, "rows of ", tensor.describe(),
            ": expected f32 of at least one axis");
    if (tensor.dim(-1) > 1 && tensor.stride(-1) != 1) tensor_ = tensor.contiguous();
    length_ = tensor_.dim(-1);
    count_ = 1;
    for (int axis = 0; axis + 1 < tensor_.rank(); ++axis) count_ *= tensor_.dim(axis);
    base_ = tensor_.data<float>();
  }

  int64_t count() const { return count_; }
  int64_t length() const { return length_; }
  float* operator[](int64_t row) const {
    int64_t offset = 0;
    for (int axis = tensor_.rank() - 2; axis >= 0; --axis) {
      offset += row % tensor_.shape()[axis] * tensor_.strides()[axis];
      row /= tensor_.shape()[axis];
    }
    return base_ + offset;
  }

 private:
  Tensor tensor_;
  int64_t count_, length_;
  float* base_;
};

}  // namespace fovea::kernels::cpu
