// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/plain_storage.h"

#include <algorithm>

#include "fovea/core/thread_pool.h"

namespace fovea::cache {
namespace {

// Pages of a cache that is read whole mean nothing but the grain at which kernels split it.
constexpr int64_t kWholePage = 64;

// One task converts this many tokens of a head.
constexpr int64_t kTokensPerTask = 256;

// Rows of from [H,T,W] to rows of to [H,T,W], of any float types.
void convert(const Tensor& from, const Tensor& to) {
  const int64_t chunks = (from.dim(1) + kTokensPerTask - 1) / kTokensPerTask;
  parallel_for(from.dim(0) * chunks, [&](int64_t task, int) {
    const int64_t first = task % chunks * kTokensPerTask,
                  last = std::min(from.dim(1), first + kTokensPerTask);
    const auto part = [&](const Tensor& x) { return x.select(0, task / chunks).slice(0, first, last); };
    part(to).copy_from(part(from).to(to.dtype()));
  });
}

}  // namespace

PlainStorage::PlainStorage(DType type, int64_t heads, int64_t dim, int64_t dim_v)
    : Storage(heads, dim, dim_v),
      type_(type),
      k_(heads, dim * size_of(type)),
      v_(heads, dim_v * size_of(type)) {}

void PlainStorage::write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) {
  const auto put = [&](GrowingRows& to, const Tensor& from) {
    to.resize(std::max(to.rows(), slot + count));
    convert(from.slice(1, token, token + count), to.view(type_, slot, count));
  };
  put(k_, rows.k);
  put(v_, rows.v);
}

void PlainStorage::truncate(int64_t slots, int64_t) {
  k_.resize(slots);
  v_.resize(slots);
}

void PlainStorage::read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const {
  convert(k_.view(type_, slot, count), k);
  if (v.defined()) convert(v_.view(type_, slot, count), v);
}

std::optional<std::pair<Tensor, Tensor>> PlainStorage::exact() const {
  if (type_ != DType::f32) return std::nullopt;
  return std::pair{k_.view(type_, 0, slots()).unsqueeze(0), v_.view(type_, 0, slots()).unsqueeze(0)};
}

kernels::AttentionResult PlainStorage::attend(const Tensor& q, const Tensor& pages, int64_t page_size) {
  const int64_t page = pages.defined() ? page_size : kWholePage;
  const auto kv = kernels::PagedKv::of(k_.view(type_, 0, slots()).unsqueeze(0),
                                       v_.view(type_, 0, slots()).unsqueeze(0), page);
  auto result = kernels::decode(q.to(type_), kv, pages);
  result.o = result.o.to(DType::f32);

  int64_t tokens = heads_ * slots();
  if (pages.defined()) {
    tokens = 0;
    std::vector<int32_t> read;
    const int64_t group = q.dim(1) / heads_;
    for (int64_t h = 0; h < heads_; ++h) {
      union_of_pages(pages, h * group, group, read);
      tokens += tokens_of_pages(read, page_size, slots());
    }
  }
  bytes_read_ = tokens * (dim_ + dim_v_) * size_of(type_);
  return result;
}

void PlainStorage::save(ByteWriter& out) const {
  k_.save(out);
  v_.save(out);
}

void PlainStorage::load(ByteReader& in, int64_t slots) {
  k_.load(in, slots);
  v_.load(in, slots);
}

}  // namespace fovea::cache
