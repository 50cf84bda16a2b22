// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "fovea/core/tensor.h"

/// Products with weights that stay in their compact form.
namespace fovea::kernels {

/// A weight matrix [N,K] whose rows are runs of `group` values scale * code + offset, code unsigned of 4 or 8
/// bits: what every block format of GGUF becomes without loss (Q4_0: offset = -8 scale, Q8_0: code + 128,
/// ...).
struct AffineWeight {
  int64_t rows = 0, columns = 0;  // N, K; group divides K
  int bits = 8;
  int64_t group = 32;
  Tensor codes;   // u8 [N,K] (8 bits) or [N,K/2] (4 bits: value 2i in the low half of byte i)
  Tensor scale;   // f32 [N,K/group]
  Tensor offset;  // f32 [N,K/group]
};

/// A weight prepared for multiplication: immutable, shared by threads.
class Linear {
 public:
  virtual ~Linear() = default;
  /// y = x W^T, x [M,K] f32 -> y [M,N] f32 (strided rows allowed). Quantised weights quantise x to 8 bits per
  /// group.
  virtual void apply(const Tensor& x, const Tensor& y) const = 0;
  /// Row `row` of the matrix in f32, K values: the embedding look-up.
  virtual void row(int64_t row, float* out) const = 0;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t bytes() const = 0;
};

/// From f32, f16 or bf16 [N,K] (kept in bf16 when the processor multiplies it natively and `allow_bf16`, else
/// f32).
std::unique_ptr<Linear> make_linear(const Tensor& weight, bool allow_bf16 = true);
std::unique_ptr<Linear> make_linear(const AffineWeight& weight);

/// c = a b^T (+ c when accumulate), all f32, a [M,K], b [N,K]: the plain product used by layers and
/// references.
void gemm_nt(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate = false);

}  // namespace fovea::kernels
