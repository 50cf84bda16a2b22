// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "fovea/cache/storage.h"

namespace fovea::cache {

/// A storage of codes. Attention decodes a few tokens at a time, inside the kernel that attends to them; each
/// token is decoded once for all query rows and heads that read it.
class CodedStorage : public Storage {
 public:
  using Storage::Storage;

  void read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const override;
  kernels::AttentionResult attend(const Tensor& q, const Tensor& pages, int64_t page_size) override;

 protected:
  /// Kv heads that are decoded together: they read the same tokens. Divides heads().
  virtual int64_t heads_together() const = 0;
  /// Bytes of one token of all heads.
  virtual int64_t token_bytes() const = 0;
  /// Heads head .. of the tokens from `slot` on: k [count,heads_together(),D] after rope, v
  /// [count,heads_together(),Dv] in the basis of the codes, both contiguous; nullptr: v is not read. Called
  /// by several threads at a time.
  virtual void decode_rows(int64_t head, int64_t slot, int64_t count, float* k, float* v) const = 0;
  /// Sets rows_k and rows_v where decode_rows only decodes rows of codes.
  virtual void view_rows(kernels::CodedKv&) const {}
  /// Takes rows [...,Dv], contiguous, from the basis of the codes to that of the values, in place. Linear, so
  /// that weighted sums of values may be taken first.
  virtual void restore_values(const Tensor&) const {}

 private:
  std::vector<int32_t> read_pages_;
};

}  // namespace fovea::cache
