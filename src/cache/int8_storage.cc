// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/int8_storage.h"

#include <algorithm>

#include "fovea/core/thread_pool.h"
#include "fovea/kernels/quantize.h"

namespace fovea::cache {
namespace {

constexpr int64_t kScaleBytes = 2 * sizeof(float);

}  // namespace

Int8Storage::Int8Storage(int64_t heads, int64_t dim, int64_t dim_v)
    : TiledStorage(heads, dim, dim_v),
      k_{GrowingRows(heads, dim), GrowingRows(heads, kScaleBytes)},
      v_{GrowingRows(heads, dim_v), GrowingRows(heads, kScaleBytes)} {}

void Int8Storage::Side::resize(int64_t slots) {
  codes.resize(slots);
  scales.resize(slots);
}

void Int8Storage::Side::write(const Tensor& x, int64_t token, int64_t count, int64_t slot) {
  resize(std::max(codes.rows(), slot + count));
  const int64_t width = x.dim(2);
  parallel_for(x.dim(0), [&](int64_t head, int) {
    for (int64_t i = 0; i < count; ++i) {
      auto* scale = scales.row<float>(head, slot + i);
      kernels::quantize_affine_row(&x.at<float>(head, token + i, 0), width, 8, width, 1.0f,
                                   codes.row<uint8_t>(head, slot + i), scale, scale + 1);
    }
  });
}

void Int8Storage::Side::read(int64_t head, int64_t slot, int64_t count, const Tensor& x) const {
  const int64_t width = codes.row_bytes();
  auto* out = x.data<float>();
  for (int64_t i = 0; i < count; ++i) {
    const auto* scale = scales.row<float>(head, slot + i);
    kernels::dequantize_affine_row(codes.row<uint8_t>(head, slot + i), scale, scale + 1, width, 8, width,
                                   out + i * width);
  }
}

void Int8Storage::write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) {
  k_.write(rows.k, token, count, slot);
  v_.write(rows.v, token, count, slot);
}

void Int8Storage::truncate(int64_t slots, int64_t) {
  k_.resize(slots);
  v_.resize(slots);
}

int64_t Int8Storage::token_bytes() const { return heads_ * (dim_ + dim_v_ + 2 * kScaleBytes); }

void Int8Storage::decode_tile(int64_t head, int64_t slot, int64_t count, const Tensor& k,
                              const Tensor& v) const {
  k_.read(head, slot, count, k);
  if (v.defined()) v_.read(head, slot, count, v);
}

void Int8Storage::save(ByteWriter& out) const {
  for (const auto* side : {&k_, &v_}) {
    side->codes.save(out);
    side->scales.save(out);
  }
}

void Int8Storage::load(ByteReader& in, int64_t slots) {
  for (auto* side : {&k_, &v_}) {
    side->codes.load(in, slots);
    side->scales.load(in, slots);
  }
}

}  // namespace fovea::cache
