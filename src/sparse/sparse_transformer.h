// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"
#include "fovea/sparse/plan.h"
#include "fovea/sparse/planner.h"

namespace fovea::sparse {

/// Generating Long Sequences with Sparse Transformers. Child, Gray, Radford, Sutskever 2019, arXiv
/// 1904.10509: causal attention factorised over two head sets of O(sqrt T) keys a row.

/// A1(i) = the last stride+1 keys, A2(i) = every stride-th key back from i.
struct StridedOptions {
  int64_t stride = 128;
  std::string combine = "union";

  static constexpr auto fields() {
    using O = StridedOptions;
    return options::list(
        options::field(&O::stride, "stride", "length of the period", options::at_least(1)),
        options::field(&O::combine, "combine", "head sets: both merged, one of them, or alternating by head",
                       options::one_of("union,first,second,heads")));
  }
};

/// A1(i) = the keys of i's own period up to i, A2(i) = `summary` columns at the end of every period, and i.
struct FixedOptions {
  int64_t stride = 128;
  int64_t summary = 8;
  int64_t spread = 1;
  std::string combine = "union";

  static constexpr auto fields() {
    using O = FixedOptions;
    return options::list(
        options::field(&O::stride, "stride", "length of the period", options::at_least(1)),
        options::field(&O::summary, "summary", "summary columns of a period", options::at_least(1)),
        options::field(&O::spread, "spread", "distinct groups of summary columns over the heads",
                       options::at_least(1)),
        options::field(&O::combine, "combine", "head sets: both merged, one of them, or alternating by head",
                       options::one_of("union,first,second,heads")));
  }
  void validate() const;
};

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv]; any lengths, Tk need not be a multiple of the stride.
kernels::AttentionResult sparse_transformer_strided(const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const StridedOptions& options = {});
kernels::AttentionResult sparse_transformer_fixed(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const FixedOptions& options = {});

/// dq, dk, dv for the gradient d_o [B,Hq,Tq,Dv] of o; o and lse are recomputed.
kernels::AttentionGradients sparse_transformer_strided_backward(const Tensor& q, const Tensor& k,
                                                                const Tensor& v, const Tensor& d_o,
                                                                const StridedOptions& options = {});
kernels::AttentionGradients sparse_transformer_fixed_backward(const Tensor& q, const Tensor& k,
                                                              const Tensor& v, const Tensor& d_o,
                                                              const FixedOptions& options = {});

/// The patterns as plans of single rows, for `heads` query heads.
KeyPlan plan_sparse_transformer_strided(int64_t heads, int64_t queries, int64_t keys,
                                        const StridedOptions& options = {});
KeyPlan plan_sparse_transformer_fixed(int64_t heads, int64_t queries, int64_t keys,
                                      const FixedOptions& options = {});

/// Recipe names: sparse-transformer-strided, sparse-transformer-fixed.
void add_sparse_transformer_planners(std::vector<PlannerEntry>& entries);

}  // namespace fovea::sparse
