// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "fovea/core/tensor.h"

namespace fovea {

/// Counter-based random numbers (Philox 4x32, 10 rounds; Salmon et al. 2011): element i of a stream depends
/// on (seed, stream, i) alone, so the numbers are the same in any order and for any number of threads.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  /// Four independent 32-bit words of block `index`.
  std::array<uint32_t, 4> block(uint64_t index) const;
  /// Uniform in [0, 1), element i of the stream.
  float uniform(uint64_t i) const;
  /// Standard normal, element i of the stream (Box-Muller).
  float normal(uint64_t i) const;

  /// The next element of a sequential walk over the stream.
  float next_uniform() { return uniform(position_++); }
  float next_normal() { return normal(position_++); }
  /// Uniform in [0, bound).
  int64_t next_below(int64_t bound);

 private:
  uint64_t seed_, stream_, position_ = 0;
};

/// Tensors of f32 filled in element order.
Tensor random_normal(const Shape& shape, uint64_t seed, uint64_t stream = 0);
Tensor random_uniform(const Shape& shape, uint64_t seed, uint64_t stream = 0);

}  // namespace fovea
