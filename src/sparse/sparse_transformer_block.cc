// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/sparse_transformer_block.h"

#include "fovea/core/catalogue.h"
#include "fovea/kernels/elementwise.h"
#include "fovea/kernels/matmul.h"
#include "fovea/kernels/rows.h"
#include "fovea/sparse/sparse_transformer.h"

namespace fovea::sparse {
namespace {

constexpr float kEpsilon = 1e-5f;
constexpr float kSigmoidSlope = 1.702f;

// y = x w^T (+ bias), x [M,K], w [N,K], bias [N].
Tensor project(const Tensor& x, const Tensor& w, const Tensor& bias = {}) {
  Tensor y = bias.defined() ? bias.unsqueeze(0).expand({x.dim(0), w.dim(0)}).clone()
                            : Tensor::empty({x.dim(0), w.dim(0)});
  kernels::gemm_nt(x, w, y, bias.defined());
  return y;
}

// [B*T,E] -> a view [B,H,T,D].
Tensor split_heads(const Tensor& x, int64_t batch, int64_t heads) {
  return x.reshape({batch, x.dim(0) / batch, heads, x.dim(1) / heads}).transpose(1, 2);
}

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const SparseTransformerBlockOptions& o) {
  if (o.pattern == "dense")
    return kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()}).o;
  if (o.pattern == "fixed")
    return sparse_transformer_fixed(q, k, v, {o.stride, o.summary, o.spread, o.combine}).o;
  return sparse_transformer_strided(q, k, v, {o.stride, o.combine}).o;
}

}  // namespace

void SparseTransformerBlockOptions::validate() const {
  if (pattern == "fixed") FixedOptions{stride, summary, spread, combine}.validate();
}

Tensor sparse_transformer_block(const Tensor& x, const SparseTransformerBlockWeights& w,
                                const SparseTransformerBlockOptions& options) {
  const int64_t batch = x.dim(0), rows = x.dim(0) * x.dim(1), width = x.dim(2);
  require(width % options.heads == 0, "sparse-transformer-block: E = ", width,
          " is not a multiple of heads = ", options.heads);
  if (rows == 0) return x.clone();
  const Tensor h = x.contiguous().reshape({rows, width});
  const Tensor normed = kernels::layer_norm(h, w.ln1_g, w.ln1_b, kEpsilon);
  const Tensor attended = attend(split_heads(project(normed, w.wq), batch, options.heads),
                                 split_heads(project(normed, w.wk), batch, options.heads),
                                 split_heads(project(normed, w.wv), batch, options.heads), options);
  Tensor y = project(attended.transpose(1, 2).contiguous().reshape({rows, width}), w.wp);
  kernels::add_in_place(y, h);  // h + a, which the second branch reads as well
  const Tensor hidden = project(kernels::layer_norm(y, w.ln2_g, w.ln2_b, kEpsilon), w.w1, w.b1);
  kernels::silu_multiply(hidden, {}, hidden, kSigmoidSlope);
  kernels::add_in_place(y, project(hidden, w.w2, w.b2));
  return y.reshape(x.shape());
}

void register_sparse_transformer_block(Catalogue& catalogue) {
  catalogue.add<SparseTransformerBlockOptions>("sparse-transformer-block", Room::sparse, 113)
      .summary("pre-norm residual block around strided, fixed or dense causal attention")
      .inputs({"x [B,T,E]", "ln1_g [E]", "ln1_b [E]", "ln2_g [E]", "ln2_b [E]", "wq [E,E]", "wk [E,E]",
               "wv [E,E]", "wp [E,E]", "w1 [F,E]", "b1 [F]", "w2 [E,F]", "b2 [E]"})
      .outputs({"y [B,T,E]"})
      .forms({Form::causal})
      .requires_that([](const Symbols& symbols, const SparseTransformerBlockOptions& options) -> std::string {
        if (symbols.at("E") % options.heads == 0) return "";
        return "E = " + std::to_string(symbols.at("E")) +
               " is not a multiple of heads = " + std::to_string(options.heads);
      })
      .runs([](const Tensors& in, const SparseTransformerBlockOptions& options) -> Tensors {
        const SparseTransformerBlockWeights weights{in["ln1_g"], in["ln1_b"], in["ln2_g"], in["ln2_b"],
                                                    in["wq"],    in["wk"],    in["wv"],    in["wp"],
                                                    in["w1"],    in["b1"],    in["w2"],    in["b2"]};
        return {{"y", sparse_transformer_block(in["x"], weights, options)}};
      });
}

}  // namespace fovea::sparse
