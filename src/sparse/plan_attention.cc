// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "fovea/core/catalogue.h"
#include "fovea/kernels/attention.h"
#include "fovea/sparse/plan.h"

// The shared executor as an operator: exact softmax over the keys of a plan that the caller brings, as key
// blocks or as a mask. MInference (Jiang et al. 2024, arXiv 2407.02490) is the first paper of the room that
// needs it.

namespace fovea::sparse {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;

struct PlanAttentionOptions {
  int64_t block_q = 64, block_k = 64;
  bool causal = true;
  float scale = 0;

  static constexpr auto fields() {
    using O = PlanAttentionOptions;
    return options::list(
        options::field(&O::block_q, "block_q", "rows per query block of `blocks`", options::at_least(1)),
        options::field(&O::block_k, "block_k", "keys per key block of `blocks`", options::at_least(1)),
        options::field(&O::causal, "causal", "intersect the plan with j <= i + Tk - Tq"),
        options::field(&O::scale, "scale", "factor of the scores; 0 means 1/sqrt(D)", options::at_least(0)));
  }
};

// The plan of a plan-attention call: a KeyPlan for `blocks`, a masked dense call for `mask`.
struct GivenPlan {
  AttentionParams params;
  std::optional<KeyPlan> plan;

  GivenPlan(const char* owner, const Tensors& in, const PlanAttentionOptions& options) {
    require(in.contains("mask") != in.contains("blocks"), owner,
            ": exactly one of mask and blocks must be given, got ", in.contains("mask") ? "both" : "neither");
    params.scale = options.scale;
    if (options.causal) params.visible = kernels::Visibility::causal();
    params.mask = in["mask"];
    if (in.contains("blocks"))
      plan = plan_from_blocks(in["blocks"], options.block_q, options.block_k, in["q"].dim(2), in["k"].dim(2));
  }
  AttentionResult forward(const Tensors& in) const {
    return plan ? kernels::plan_forward(in["q"], in["k"], in["v"], *plan, params)
                : kernels::flash_forward(in["q"], in["k"], in["v"], params);
  }
  kernels::AttentionGradients backward(const Tensors& in) const {
    const auto result = forward(in);
    return plan ? kernels::plan_backward(in["q"], in["k"], in["v"], *plan, result, in["do"], params)
                : kernels::flash_backward(in["q"], in["k"], in["v"], result, in["do"], params);
  }
};

constexpr const char* kMask = "mask? [B,Hq,Tq,Tk] u8";
constexpr const char* kBlocks = "blocks? [B,Hq,ceil(Tq/block_q),ceil(Tk/block_k)] u8";

}  // namespace

void register_plan_attention(Catalogue& catalogue) {
  catalogue.add<PlanAttentionOptions>("plan-attention", Room::sparse, 92)
      .summary("exact softmax over the keys of a given plan")
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float", kMask, kBlocks})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const PlanAttentionOptions& options) -> Tensors {
        const auto result = GivenPlan("plan-attention", in, options).forward(in);
        return {{"o", result.o}, {"lse", result.lse}};
      });
  catalogue.add<PlanAttentionOptions>("plan-attention-backward", Room::sparse, 92)
      .summary("gradients of plan-attention with the plan fixed")
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float",
               "do [B,Hq,Tq,Dv] float", kMask, kBlocks})
      .outputs({"dq [B,Hq,Tq,D] float", "dk [B,Hkv,Tk,D] float", "dv [B,Hkv,Tk,Dv] float"})
      .forms({Form::backward, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const PlanAttentionOptions& options) -> Tensors {
        const auto gradients = GivenPlan("plan-attention-backward", in, options).backward(in);
        return {{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};
      });
}

}  // namespace fovea::sparse
