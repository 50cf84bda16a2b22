// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache/growing_rows.h"
#include "fovea/cache/storage.h"

namespace fovea::cache {

/// Rows as f32, f16 or bf16, which kernels read in place.
class PlainStorage : public Storage {
 public:
  PlainStorage(DType type, int64_t heads, int64_t dim, int64_t dim_v);
  std::unique_ptr<Storage> clone() const override { return std::make_unique<PlainStorage>(*this); }

  int64_t slots() const override { return k_.rows(); }
  void write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) override;
  void truncate(int64_t slots, int64_t length) override;
  void read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const override;
  std::optional<std::pair<Tensor, Tensor>> exact() const override;
  kernels::AttentionResult attend(const Tensor& q, const Tensor& pages, int64_t page_size) override;
  DType bounds_type() const override { return type_; }
  int64_t bytes() const override { return k_.bytes() + v_.bytes(); }
  void save(ByteWriter& out) const override;
  void load(ByteReader& in, int64_t slots) override;

 private:
  DType type_;
  GrowingRows k_, v_;
};

}  // namespace fovea::cache
