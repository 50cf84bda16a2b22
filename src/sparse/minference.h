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

/// MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention. Jiang et al.
/// 2024, arXiv 2407.02490. Each head has one of three shapes, found offline; what is inside the shape is
/// found from the prompt.

/// Sinks and a window: key j < n_init, or p - j < n_local.
struct AShapeOptions {
  int64_t n_init = 1024;
  int64_t n_local = 4096;

  static constexpr auto fields() {
    return options::list(
        options::field(&AShapeOptions::n_init, "n_init", "first keys always visible", options::at_least(0)),
        options::field(&AShapeOptions::n_local, "n_local", "window length, own key included",
                       options::at_least(1)));
  }
  kernels::Visibility visibility() const {
    return {.window_left = n_local - 1, .window_right = 0, .prefix = n_init};
  }
};

/// The key columns and the diagonals that hold most of the attention of the last rows.
struct VerticalSlashOptions {
  int64_t vertical = 1000;
  int64_t slash = 6096;
  int64_t last_q = 64;
  int64_t keep_sink = 30;
  int64_t keep_local = 100;
  int64_t block = 64;

  static constexpr auto fields() {
    using O = VerticalSlashOptions;
    return options::list(
        options::field(&O::vertical, "vertical", "columns kept", options::at_least(0)),
        options::field(&O::slash, "slash", "diagonals kept", options::at_least(0)),
        options::field(&O::last_q, "last_q", "rows used for the estimate", options::at_least(1)),
        options::field(&O::keep_sink, "keep_sink", "first columns forced", options::at_least(0)),
        options::field(&O::keep_local, "keep_local", "first diagonals forced", options::at_least(1)),
        options::field(&O::block, "block", "query block of the widening", options::at_least(1)));
  }
};

/// The key blocks whose mean key fits the mean query of a block best.
struct BlockTopkOptions {
  int64_t topk = 100;
  int64_t block = 64;
  bool causal = true;

  static constexpr auto fields() {
    using O = BlockTopkOptions;
    return options::list(
        options::field(&O::topk, "topk", "key blocks kept for each query block", options::at_least(1)),
        options::field(&O::block, "block", "tokens per block", options::at_least(1)),
        options::field(&O::causal, "causal",
                       "only blocks that begin before the last row of the query block"));
  }
};

/// All of the above, and which of them.
struct MinferenceOptions {
  std::string pattern = "vertical-slash";
  int64_t n_init = 1024, n_local = 4096;
  int64_t vertical = 1000, slash = 6096, last_q = 64, keep_sink = 30, keep_local = 100;
  int64_t topk = 100, block = 64;

  static constexpr auto fields() {
    using O = MinferenceOptions;
    return options::list(
        options::field(&O::pattern, "pattern", "shape of heads without a pattern of their own",
                       options::one_of("a-shape,vertical-slash,block-topk")),
        options::field(&O::n_init, "n_init", "a-shape: first keys always visible", options::at_least(0)),
        options::field(&O::n_local, "n_local", "a-shape: window length", options::at_least(1)),
        options::field(&O::vertical, "vertical", "vertical-slash: columns kept", options::at_least(0)),
        options::field(&O::slash, "slash", "vertical-slash: diagonals kept", options::at_least(0)),
        options::field(&O::last_q, "last_q", "vertical-slash: rows used for the estimate",
                       options::at_least(1)),
        options::field(&O::keep_sink, "keep_sink", "vertical-slash: first columns forced",
                       options::at_least(0)),
        options::field(&O::keep_local, "keep_local", "vertical-slash: first diagonals forced",
                       options::at_least(1)),
        options::field(&O::topk, "topk", "block-topk: key blocks kept", options::at_least(1)),
        options::field(&O::block, "block", "query block (and key block of block-topk)",
                       options::at_least(1)));
  }
  AShapeOptions a_shape() const { return {n_init, n_local}; }
  VerticalSlashOptions vertical_slash() const {
    return {vertical, slash, last_q, keep_sink, keep_local, block};
  }
  BlockTopkOptions block_topk() const { return {topk, block, true}; }
};

/// Every row's sinks and window: lists of one row each, shared by all heads.
KeyPlan plan_a_shape(const AShapeOptions& options, int64_t queries, int64_t keys);

struct VerticalSlash {
  Tensor columns;  ///< i32 [B,Hq,nv], ascending
  Tensor slashes;  ///< i32 [B,Hq,ns], ascending
};

/// The best columns and diagonals of q [B,Hq,Tq,D] and k [B,Hkv,Tk,D]; ties go to the lowest index.
VerticalSlash select_vertical_slash(const Tensor& q, const Tensor& k,
                                    const VerticalSlashOptions& options = {});
/// Block of rows [f,e) (absolute positions) sees the columns and, for each slash d, the keys [f-d, e-d).
KeyPlan plan_vertical_slash(const VerticalSlash& selected, int64_t block, int64_t queries, int64_t keys);
/// blocks u8 [B,Hq,nQ,nK]; a tie goes to the lowest index.
Tensor select_blocks(const Tensor& q, const Tensor& k, const BlockTopkOptions& options = {});

/// Codes of head_pattern and of the first column of candidates.
enum class HeadPattern : int32_t { a_shape = 0, vertical_slash = 1, block_topk = 2 };

/// Causal attention of q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv]. With head_pattern i32 [Hq] and
/// head_budget i32 [Hq,2], head h takes its own shape and budgets: (n_init, n_local), (vertical, slash) or
/// (topk, ignored).
kernels::AttentionResult minference(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const MinferenceOptions& options = {}, const Tensor& head_pattern = {},
                                    const Tensor& head_budget = {});

struct MinferenceSearch {
  Tensor head_pattern;  ///< i32 [Hq]
  Tensor head_budget;   ///< i32 [Hq,2]
  Tensor error;         ///< f32 [Hq,C]: sum |o_sparse - o_dense|
};

/// For every head the candidate (code, p1, p2) of `candidates` i32 [C,3] with the smallest error on this
/// sample; the lowest index on a tie.
MinferenceSearch minference_search(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& candidates, const VerticalSlashOptions& options = {});

/// Recipe names: minference, a-shape, vertical-slash, block-topk.
void add_minference_planners(std::vector<PlannerEntry>& entries);

}  // namespace fovea::sparse
