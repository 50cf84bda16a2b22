// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/code_rows.h"

#include <algorithm>
#include <cmath>

namespace fovea::cache {
namespace {

// f16 holds integers up to 2048 exactly. A zero beyond that says that the group's spread is below f16
// resolution of its values: it is stored as a constant (codes 0, zero -1).
constexpr float kLargestZero = 2048;

}  // namespace

CodeRows::CodeRows(int64_t lanes, int64_t channels, const Format& format)
    : channels_(channels),
      format_(format),
      codes_(lanes, (channels * format.bits + 7) / 8),
      scales_(lanes, channels / format.group * 2 * size_of(format.scale_type)) {}

void CodeRows::resize(int64_t rows) {
  codes_.resize(rows);
  scales_.resize(rows);
}

void CodeRows::write(int64_t lane, int64_t row, int64_t count, const float* x, int64_t stride) {
  const int64_t groups = channels_ / format_.group;
  thread_local std::vector<float> scales, flat;
  scales.resize(static_cast<size_t>(2 * groups));
  float* zeros = scales.data() + groups;
  for (int64_t i = 0; i < count; ++i, x += stride) {
    const auto quantize = [&](const float* values) {
      kernels::quantize_affine_row(values, channels_, format_.bits, format_.group, format_.clip,
                                   codes_.row<uint8_t>(lane, row + i), scales.data(), zeros);
    };
    quantize(x);
    if (format_.scale_type == DType::f32) {
      std::copy(scales.begin(), scales.end(), scales_.row<float>(lane, row + i));
      continue;
    }
    const auto too_large = [](float zero) { return std::fabs(zero) > kLargestZero; };
    if (std::any_of(zeros, zeros + groups, too_large)) {
      flat.assign(x, x + channels_);
      for (int64_t g = 0; g < groups; ++g)
        if (too_large(zeros[g]))
          std::fill_n(flat.begin() + g * format_.group, format_.group,
                      flat[static_cast<size_t>(g * format_.group)]);
      quantize(flat.data());
    }
    std::transform(scales.begin(), scales.end(), scales_.row<Half>(lane, row + i),
                   [](float value) { return to_half(value); });
  }
}

void CodeRows::read(int64_t lane, int64_t row, int64_t count, float* x) const {
  kernels::dequantize_affine_rows(view(lane, row), count, x);
}

kernels::AffineRows CodeRows::view(int64_t lane, int64_t row) const {
  return {.codes = codes_.row<uint8_t>(lane, row),
          .scales = scales_.row<std::byte>(lane, row),
          .code_stride = codes_.row_bytes(),
          .scale_stride = scales_.row_bytes(),
          .scale_type = format_.scale_type,
          .channels = channels_,
          .group = format_.group,
          .bits = format_.bits};
}

void CodeRows::save(ByteWriter& out) const {
  codes_.save(out);
  scales_.save(out);
}

void CodeRows::load(ByteReader& in, int64_t rows) {
  codes_.load(in, rows);
  scales_.load(in, rows);
}

}  // namespace fovea::cache
