// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/rtn_storage.h"

#include <algorithm>

#include "fovea/core/thread_pool.h"

namespace fovea::cache {
namespace {

CodeRows rows_of(const RtnStorageOptions& options, int64_t heads, int64_t dim) {
  const int64_t group = std::min(options.group_size, dim);
  require(dim % group == 0, "rtn: option group_size = ", options.group_size, " does not divide the ", dim,
          " channels of a head");
  return {heads, dim, {.bits = options.bits, .group = group, .clip = 1.0f, .scale_type = DType::f16}};
}

CodeRows whole_rows(int64_t heads, int64_t dim) {
  return {heads, dim, {.bits = 8, .group = dim, .clip = 1.0f, .scale_type = DType::f32}};
}

}  // namespace

RtnStorage::RtnStorage(const RtnStorageOptions& options, int64_t heads, int64_t dim, int64_t dim_v)
    : RtnStorage(heads, rows_of(options, heads, dim), rows_of(options, heads, dim_v)) {}

RtnStorage::RtnStorage(int64_t heads, CodeRows k, CodeRows v)
    : CodedStorage(heads, k.channels(), v.channels()), k_(std::move(k)), v_(std::move(v)) {}

std::unique_ptr<RtnStorage> RtnStorage::int8(int64_t heads, int64_t dim, int64_t dim_v) {
  return std::unique_ptr<RtnStorage>(new RtnStorage(heads, whole_rows(heads, dim), whole_rows(heads, dim_v)));
}

void RtnStorage::write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) {
  const int64_t slots = std::max(k_.rows(), slot + count);
  k_.resize(slots);
  v_.resize(slots);
  parallel_for(heads_, [&](int64_t head, int) {
    const auto put = [&](CodeRows& to, const Tensor& x) {
      if (count > 0) to.write(head, slot, count, &x.at<float>(head, token, 0), x.stride(1));
    };
    put(k_, rows.k);
    put(v_, rows.v);
  });
}

void RtnStorage::truncate(int64_t slots, int64_t) {
  k_.resize(slots);
  v_.resize(slots);
}

void RtnStorage::decode_rows(int64_t head, int64_t slot, int64_t count, float* k, float* v) const {
  k_.read(head, slot, count, k);
  if (v != nullptr) v_.read(head, slot, count, v);
}

void RtnStorage::view_rows(kernels::CodedKv& kv) const {
  for (int64_t head = 0; head < heads_; ++head) {
    kv.rows_k.push_back(k_.view(head, 0));
    kv.rows_v.push_back(v_.view(head, 0));
  }
}

void RtnStorage::save(ByteWriter& out) const {
  k_.save(out);
  v_.save(out);
}

void RtnStorage::load(ByteReader& in, int64_t slots) {
  k_.load(in, slots);
  v_.load(in, slots);
}

}  // namespace fovea::cache
