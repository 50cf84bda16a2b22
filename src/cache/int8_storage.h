// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache/growing_rows.h"
#include "fovea/cache/tiled_storage.h"

namespace fovea::cache {

/// Rows as 8-bit codes with one scale and zero (f32) per token and head.
class Int8Storage : public TiledStorage {
 public:
  Int8Storage(int64_t heads, int64_t dim, int64_t dim_v);
  std::unique_ptr<Storage> clone() const override { return std::make_unique<Int8Storage>(*this); }

  int64_t slots() const override { return k_.codes.rows(); }
  void write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) override;
  void truncate(int64_t slots, int64_t length) override;
  int64_t bytes() const override { return slots() * token_bytes(); }
  void save(ByteWriter& out) const override;
  void load(ByteReader& in, int64_t slots) override;

 private:
  struct Side {
    GrowingRows codes, scales;  // lanes are heads; scales: scale, zero
    void resize(int64_t slots);
    void write(const Tensor& x, int64_t token, int64_t count, int64_t slot);
    void read(int64_t head, int64_t slot, int64_t count, const Tensor& x) const;
  };

  int64_t heads_per_tile() const override { return 1; }
  int64_t token_bytes() const override;
  void decode_tile(int64_t head, int64_t slot, int64_t count, const Tensor& k,
                   const Tensor& v) const override;

  Side k_, v_;
};

}  // namespace fovea::cache
