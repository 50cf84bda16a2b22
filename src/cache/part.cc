// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/part.h"

namespace fovea::cache {

Part::Part(const CacheSpec& spec, Retention retention, int64_t heads, const CacheShape& shape)
    : retention_(retention),
      storage_(make_storage(spec.storage, heads, shape)),
      selection_(PageSelection::make(spec.selection, shape, *storage_)) {}

Part::Part(const Part& other)
    : retention_(other.retention_),
      storage_(other.storage_->clone()),
      selection_(other.selection_ ? std::make_unique<PageSelection>(*other.selection_) : nullptr),
      length_(other.length_),
      bytes_read_(other.bytes_read_) {}

kernels::AttentionResult Part::prefill(const Tensor& q, const NewRows& rows,
                                       const PrefillAttention& attention) {
  // Every row of the chunk sees all that was held before it, in whatever order, and the chunk up to itself
  // (for a streaming part: the chunked form of DuoAttention).
  const auto attend_over = [&](const Tensor& k, const Tensor& v) {
    return retention_.keeps_all()
               ? attention(q, k, v)
               : kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
  };
  const int64_t past = storage_->slots(), count = rows.k.dim(1);
  storage_->observe(rows);
  kernels::AttentionResult result;
  if (past == 0) {
    result = attend_over(rows.k.unsqueeze(0), rows.v.unsqueeze(0));
    append(rows, 0, count);
  } else if (retention_.keeps_all() && storage_->exact()) {
    append(rows, 0, count);
    const auto all = storage_->exact();
    result = attend_over(all->first, all->second);
  } else {
    const Tensor k = Tensor::empty({1, storage_->heads(), past + count, storage_->dim()});
    const Tensor v = Tensor::empty({1, storage_->heads(), past + count, storage_->dim_v()});
    const auto held = [&](const Tensor& x) { return x.select(0, 0).slice(1, 0, past); };
    storage_->read(0, past, held(k), held(v));
    k.select(0, 0).slice(1, past, past + count).copy_from(rows.k);
    v.select(0, 0).slice(1, past, past + count).copy_from(rows.v);
    result = attend_over(k, v);
    append(rows, 0, count);
  }
  return result;
}

kernels::AttentionResult Part::decode(const Tensor& q, const NewRows& rows) {
  const int64_t count = rows.k.dim(1);
  if (count == 0)
    return {Tensor::empty({1, q.dim(1), 0, storage_->dim_v()}), Tensor::empty({1, q.dim(1), 0})};
  if (count == 1 || (retention_.keeps_all() && !selection_)) {
    append(rows, 0, count);
    bytes_read_ = 0;
    return attend(q);
  }
  // Rows that would overwrite each other's window, or that select pages by bounds of their own, take turns.
  kernels::AttentionResult result{Tensor::empty({1, q.dim(1), count, storage_->dim_v()}),
                                  Tensor::empty({1, q.dim(1), count})};
  bytes_read_ = 0;
  for (int64_t t = 0; t < count; ++t) {
    append(rows, t, 1);
    const auto row = attend(q.slice(2, t, t + 1));
    result.o.slice(2, t, t + 1).copy_from(row.o);
    result.lse.slice(2, t, t + 1).copy_from(row.lse);
  }
  return result;
}

void Part::append(const NewRows& rows, int64_t token, int64_t count) {
  for (const auto& run : retention_.place(length_, count)) {
    storage_->write(rows, token + run.token, run.count, run.slot);
    if (selection_) selection_->written(*storage_, run.slot, run.count);
  }
  length_ += count;
}

kernels::AttentionResult Part::attend(const Tensor& q) {
  const Tensor pages = selection_ ? selection_->select(q, retention_.slot_of(length_ - 1)) : Tensor();
  auto result = storage_->attend(q, pages, selection_ ? selection_->page_size() : 0);
  bytes_read_ += storage_->bytes_read() + (selection_ ? selection_->bytes_read() : 0);
  return result;
}

void Part::truncate(int64_t length) {
  if (length == length_) return;
  storage_->truncate(retention_.held(length), length);
  if (selection_) selection_->truncated(*storage_);
  length_ = length;
}

int64_t Part::bytes() const { return storage_->bytes() + (selection_ ? selection_->bytes() : 0); }

void Part::save(ByteWriter& out) const {
  storage_->save(out);
  if (selection_) selection_->save(out);
}

void Part::load(ByteReader& in, int64_t length) {
  storage_->load(in, retention_.held(length));
  if (selection_) selection_->load(in, *storage_);
  length_ = length;
}

}  // namespace fovea::cache
