// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache/code_rows.h"
#include "fovea/cache/coded_storage.h"

namespace fovea::cache {

struct RtnStorageOptions {
  int bits = 4;
  int64_t group_size = 32;

  static constexpr auto fields() {
    using O = RtnStorageOptions;
    return options::list(options::field(&O::bits, "bits", "code width", options::one_of("2,4,8")),
                         options::field(&O::group_size, "group_size",
                                        "channels per scale, at most a whole row of D", options::at_least(1))
                             .alias("group"));
  }
};

/// Rows rounded to the nearest code, with a scale and zero per token, head and group of channels.
class RtnStorage : public CodedStorage {
 public:
  /// Scales in f16. Throws Error where the groups do not divide the head dimensions.
  RtnStorage(const RtnStorageOptions& options, int64_t heads, int64_t dim, int64_t dim_v);
  /// Codes of 8 bits, one f32 scale and zero per row.
  static std::unique_ptr<RtnStorage> int8(int64_t heads, int64_t dim, int64_t dim_v);
  std::unique_ptr<Storage> clone() const override { return std::make_unique<RtnStorage>(*this); }

  int64_t slots() const override { return k_.rows(); }
  void write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) override;
  void truncate(int64_t slots, int64_t length) override;
  int64_t bytes() const override { return slots() * token_bytes(); }
  void save(ByteWriter& out) const override;
  void load(ByteReader& in, int64_t slots) override;

 private:
  RtnStorage(int64_t heads, CodeRows k, CodeRows v);

  int64_t heads_together() const override { return 1; }
  int64_t token_bytes() const override { return heads_ * (k_.row_bytes() + v_.row_bytes()); }
  void decode_rows(int64_t head, int64_t slot, int64_t count, float* k, float* v) const override;
  void view_rows(kernels::CodedKv& kv) const override;

  CodeRows k_, v_;  // lanes are heads
};

}  // namespace fovea::cache
