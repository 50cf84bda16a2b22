// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "fovea/cache/page_selection.h"
#include "fovea/cache/retention.h"
#include "fovea/cache/storage.h"

namespace fovea::cache {

/// Some kv heads of a layer that share a retention: one storage, one way to place tokens in its slots, one
/// selection. Heads are numbered from 0 inside a part.
class Part {
 public:
  Part(const CacheSpec& spec, Retention retention, int64_t heads, const CacheShape& shape);
  Part(const Part& other);
  Part(Part&&) noexcept = default;

  /// As KvCache, for the part's heads: q [1,Hq,T,D] f32.
  kernels::AttentionResult prefill(const Tensor& q, const NewRows& rows, const PrefillAttention& attention);
  kernels::AttentionResult decode(const Tensor& q, const NewRows& rows);
  bool can_truncate(int64_t length) const { return retention_.can_truncate(length_, length); }
  void truncate(int64_t length);

  bool needs_unrotated_keys() const { return storage_->needs_unrotated_keys(); }
  int64_t bytes() const;
  int64_t bytes_read() const { return bytes_read_; }
  void save(ByteWriter& out) const;
  void load(ByteReader& in, int64_t length);

 private:
  void append(const NewRows& rows, int64_t token, int64_t count);
  kernels::AttentionResult attend(const Tensor& q);

  Retention retention_;
  std::unique_ptr<Storage> storage_;
  std::unique_ptr<PageSelection> selection_;  // nullptr: everything is read
  int64_t length_ = 0;                        // tokens seen
  int64_t bytes_read_ = 0;
};

}  // namespace fovea::cache
