// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "fovea/cache/byte_stream.h"
#include "fovea/cache/kv_cache.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"

namespace fovea::cache {

/// New tokens of the kv heads of one storage.
struct NewRows {
  Tensor k, k_unrotated, v;  ///< [H,T,D], [H,T,D], [H,T,Dv] f32; k_unrotated only where a storage asks for it
  Tensor hidden;             ///< [T,E] f32 or undefined
  int64_t position = 0;      ///< of the first token
  bool prompt = false;       ///< a prompt chunk, not decode tokens
};

/// How the rows of some kv heads are held, in slots 0 .. slots()-1. It knows nothing of which tokens are kept
/// or read.
class Storage {
 public:
  Storage(int64_t heads, int64_t dim, int64_t dim_v) : heads_(heads), dim_(dim), dim_v_(dim_v) {}
  virtual ~Storage() = default;
  virtual std::unique_ptr<Storage> clone() const = 0;

  int64_t heads() const { return heads_; }
  int64_t dim() const { return dim_; }
  int64_t dim_v() const { return dim_v_; }
  virtual int64_t slots() const = 0;

  /// Sees a prompt chunk as a whole before its rows are written.
  virtual void observe(const NewRows&) {}
  /// Writes `count` rows from `token` on to the slots from `slot` on; slot <= slots(): appends or overwrites.
  virtual void write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) = 0;
  /// Forgets the slots from `slots` on; `length` is the number of tokens of the sequence that remain.
  virtual void truncate(int64_t slots, int64_t length) = 0;

  /// What is held, in f32: k [H,count,D] after rope, v [H,count,Dv], any strides with a contiguous last axis.
  /// An undefined v is not read.
  virtual void read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const = 0;
  /// All that is held without a copy, k [1,H,n,D] and v [1,H,n,Dv] f32, where it is held exactly.
  virtual std::optional<std::pair<Tensor, Tensor>> exact() const { return std::nullopt; }

  /// Attention of q [1,Hq,T,D] f32 over the slots, in f32. Without `pages` the last T slots belong to the
  /// rows, in order, and row i sees up to its own; with pages i32 [1,Hq,1,R] (ascending, -1 at the end) T is
  /// 1 and each query head reads its own pages of `page_size` slots.
  virtual kernels::AttentionResult attend(const Tensor& q, const Tensor& pages, int64_t page_size) = 0;
  /// Bytes the last attend read.
  int64_t bytes_read() const { return bytes_read_; }

  virtual bool needs_unrotated_keys() const { return false; }
  /// A type that holds bounds of the keys as closely as the keys themselves are held.
  virtual DType bounds_type() const { return DType::f16; }
  virtual int64_t bytes() const = 0;
  virtual void save(ByteWriter& out) const = 0;
  virtual void load(ByteReader& in, int64_t slots) = 0;

 protected:
  int64_t heads_, dim_, dim_v_;
  int64_t bytes_read_ = 0;
};

/// The pages that query heads first .. first+count-1 of `pages` [1,Hq,1,R] read between them, ascending.
void union_of_pages(const Tensor& pages, int64_t first, int64_t count, std::vector<int32_t>& result);
/// Slots in those pages when `slots` are held.
int64_t tokens_of_pages(const std::vector<int32_t>& pages, int64_t page_size, int64_t slots);

/// Builds the storage of a recipe for `heads` of the layer's kv heads.
std::unique_ptr<Storage> make_storage(const PolicySpec& spec, int64_t heads, const CacheShape& shape);

}  // namespace fovea::cache
