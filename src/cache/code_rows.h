// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache/growing_rows.h"
#include "fovea/kernels/quantize.h"

namespace fovea::cache {

/// Rows of `channels` values as codes of a few bits with a scale and a zero per run of `group` channels, for
/// each of several lanes.
class CodeRows {
 public:
  struct Format {
    int bits = 8;
    int64_t group = 1;  ///< divides the channels
    float clip = 1.0f;
    /// f32, or f16: then a group whose zero f16 would round is held as a constant.
    DType scale_type = DType::f32;
  };
  CodeRows(int64_t lanes, int64_t channels, const Format& format);

  const Format& format() const { return format_; }
  int64_t rows() const { return codes_.rows(); }
  int64_t channels() const { return channels_; }
  /// Of one row of one lane.
  int64_t row_bytes() const { return codes_.row_bytes() + scales_.row_bytes(); }
  void resize(int64_t rows);
  /// Quantises `count` rows, `stride` floats apart, into the existing rows from `row` on.
  void write(int64_t lane, int64_t row, int64_t count, const float* x, int64_t stride);
  /// x [count,channels], contiguous.
  void read(int64_t lane, int64_t row, int64_t count, float* x) const;
  /// Where the rows of a lane lie, from `row` on.
  kernels::AffineRows view(int64_t lane, int64_t row) const;
  void save(ByteWriter& out) const;
  void load(ByteReader& in, int64_t rows);

 private:
  int64_t channels_;
  Format format_;
  GrowingRows codes_, scales_;  // scales: of all groups, then their zeros
};

}  // namespace fovea::cache
