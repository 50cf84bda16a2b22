// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "fovea/cache/code_rows.h"
#include "fovea/cache/coded_storage.h"
#include "fovea/cache/rotatekv.h"

namespace fovea::cache {

struct RotateKvStorageOptions {
  int bits = 2;
  int64_t group_size = 64;
  int64_t head_group = 0;
  double clip_ratio = 1.0;
  int64_t n_pivot = 20;

  static constexpr auto fields() {
    using O = RotateKvStorageOptions;
    return options::list(
        options::field(&O::bits, "bits", "code width", options::one_of("2,3,4,8")),
        options::field(&O::group_size, "group_size", "channels per scale, at most a whole row of Hkv*D",
                       options::at_least(1))
            .alias("group"),
        options::field(&O::head_group, "head_group",
                       "heads rotated together; 0: the largest power of two up to 4 that divides Hkv",
                       options::at_least(0)),
        options::field(&O::clip_ratio, "clip_ratio", "factor on the minimum and maximum",
                       options::above_up_to(0, 1)),
        options::field(&O::n_pivot, "n_pivot", "largest activations whose tokens stay in 16 bits",
                       options::at_least(0)));
  }
};

/// RotateKV in a cache: keys before rope in codes of a few bits, rotated and reordered; values rotated per
/// head; sinks also in f16. Scales and zeros are f16. The order of channels is calibrated on the first prompt
/// chunk.
class RotateKvStorage : public CodedStorage {
 public:
  /// Throws Error where the options do not fit the layer's heads.
  RotateKvStorage(const RotateKvStorageOptions& options, int64_t heads, const CacheShape& shape);
  std::unique_ptr<Storage> clone() const override { return std::make_unique<RotateKvStorage>(*this); }

  int64_t slots() const override { return positions_.rows(); }
  void observe(const NewRows& rows) override;
  void write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) override;
  void truncate(int64_t slots, int64_t length) override;
  bool needs_unrotated_keys() const override { return true; }
  int64_t bytes() const override { return slots() * token_bytes() + sink_rows_.bytes(); }
  void save(ByteWriter& out) const override;
  void load(ByteReader& in, int64_t slots) override;

 private:
  // An entry of the hidden states whose token is a sink.
  struct Pivot {
    float magnitude;
    int64_t position;
  };

  int64_t heads_together() const override { return heads_; }
  int64_t token_bytes() const override;
  void decode_rows(int64_t head, int64_t slot, int64_t count, float* k, float* v) const override;
  void restore_values(const Tensor& rows) const override;

  void set_order(const Tensor& perm);
  void find_sinks(const NewRows& rows);
  bool is_sink(int64_t position) const;
  void drop_sinks(int64_t first_slot, int64_t last_slot);
  void keep_sink(const NewRows& rows, int64_t token, int64_t slot);
  void put_sinks(int64_t slot, const Tensor& rows, int64_t offset) const;
  void apply_rope(int64_t slot, const Tensor& keys) const;
  Half* sink_row(size_t sink) const { return sink_rows_.row<Half>(0, static_cast<int64_t>(sink)); }

  int64_t pivots_wanted_;
  Tensor frequencies_;
  float magnitude_;
  int64_t head_group_;          // heads whose keys are rotated together
  CodeRows k_, v_;              // one lane: all heads, rotated; keys reordered
  GrowingRows positions_;       // i32: rope is applied on reading
  Tensor perm_, inverse_;       // i32 [H*D]; undefined until calibrated: identity
  kernels::RopeTable offsets_;  // of positions 0 .. kRopeBlock-1, see apply_rope
  std::vector<Pivot> pivots_;
  std::vector<int64_t> sink_slots_;
  GrowingRows sink_rows_;  // f16: k before rope [H,D], then v rotated per head [H,Dv]
};

}  // namespace fovea::cache
