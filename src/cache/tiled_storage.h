// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "fovea/cache/storage.h"
#include "fovea/core/memory.h"

namespace fovea::cache {

/// A storage of codes: attention decodes one tile of tokens after the other into scratch, and results over
/// tiles merge exactly. A tile is decoded once for all query rows and heads that read it; tiles are
/// independent tasks.
class TiledStorage : public Storage {
 public:
  using Storage::Storage;
  /// Scratch is not shared between copies.
  TiledStorage(const TiledStorage& other) : Storage(other) {}
  TiledStorage& operator=(const TiledStorage&) = delete;

  void read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const override;
  kernels::AttentionResult attend(const Tensor& q, const Tensor& pages, int64_t page_size) override;

 protected:
  /// Kv heads that are decoded together: they read the same tokens. Divides heads().
  virtual int64_t heads_per_tile() const = 0;
  /// Bytes of one token of all heads.
  virtual int64_t token_bytes() const = 0;
  /// Heads head .. of the tokens from `slot` on: k [count,heads_per_tile(),D] after rope, v
  /// [count,heads_per_tile(),Dv] in the basis of the codes, both contiguous; an undefined v is not read.
  virtual void decode_tile(int64_t head, int64_t slot, int64_t count, const Tensor& k,
                           const Tensor& v) const = 0;
  /// Takes rows [...,Dv], contiguous, from the basis of the codes to that of the values, in place. Linear, so
  /// that weighted sums of values may be taken first.
  virtual void restore_values(const Tensor&) const {}

 private:
  // A run of pages of one group of heads.
  struct Tile {
    int64_t group = 0;
    const int32_t* pages = nullptr;
    int64_t count = 0;
  };
  struct Scratch {
    memory::Buffer<float> k, v;
    memory::Buffer<int32_t> pages;
  };
  int64_t tokens_per_tile() const;
  void plan_tiles(const Tensor& pages, int64_t slots, int64_t page_size, int64_t heads_q);
  kernels::AttentionResult attend_tile(const Tile& tile, const Tensor& q, const Tensor& pages, int64_t slots,
                                       int64_t page_size, Scratch& scratch) const;
  kernels::AttentionResult attend_newest(int64_t group, const Tensor& q, Scratch& scratch) const;

  std::vector<std::vector<int32_t>> pages_;  // per group of heads
  std::vector<Tile> tiles_;
  std::vector<Scratch> scratch_;  // per worker
  std::vector<kernels::AttentionResult> parts_;
};

}  // namespace fovea::cache
