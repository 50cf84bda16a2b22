// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"

namespace fovea::sparse {

/// The residual block of Generating Long Sequences with Sparse Transformers. Child et al. 2019, arXiv
/// 1904.10509.
struct SparseTransformerBlockOptions {
  int64_t heads = 8;
  std::string pattern = "strided";
  int64_t stride = 128;
  std::string combine = "union";
  int64_t summary = 8;
  int64_t spread = 1;

  static constexpr auto fields() {
    using O = SparseTransformerBlockOptions;
    return options::list(
        options::field(&O::heads, "heads", "attention heads; divides E", options::at_least(1)),
        options::field(&O::pattern, "pattern", "attention pattern", options::one_of("strided,fixed,dense")),
        options::field(&O::stride, "stride", "length of the period", options::at_least(1)),
        options::field(&O::combine, "combine", "head sets: both merged, one of them, or alternating by head",
                       options::one_of("union,first,second,heads")),
        options::field(&O::summary, "summary", "fixed: summary columns of a period", options::at_least(1)),
        options::field(&O::spread, "spread", "fixed: distinct groups of summary columns over the heads",
                       options::at_least(1)));
  }
  void validate() const;
};

/// Weights are [out,in]; layer norms have epsilon 1e-5.
struct SparseTransformerBlockWeights {
  Tensor ln1_g, ln1_b, ln2_g, ln2_b;  ///< [E]
  Tensor wq, wk, wv, wp;              ///< [E,E]
  Tensor w1, b1;                      ///< [F,E], [F]
  Tensor w2, b2;                      ///< [E,F], [E]
};

/// x [B,T,E] -> y [B,T,E]:  a = Attn(LN1(x)) Wp^T,  y = x + a + W2 f(W1 LN2(x + a) + b1) + b2,  f(u) = u
/// sigmoid(1.702 u).
Tensor sparse_transformer_block(const Tensor& x, const SparseTransformerBlockWeights& weights,
                                const SparseTransformerBlockOptions& options = {});

}  // namespace fovea::sparse
