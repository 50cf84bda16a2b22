// SPDX-License-Identifier: Apache-2.0
// The 8-bit forward pass of FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608):
//
//   q' = H_D diag(signs) q / sqrt(D), k' likewise           q'.k' = q.k, outliers spread over D channels
//   code = e4m3(x / s), s = amax / 448                      one s per block of rows of q', k', v
//   o = sum_j e4m3(2^8 exp(s_ij - m)) v_j / (2^8 l)         m the running maximum, l the unrounded sum
//
// Keys are folded in tiles of block_k (at most 512), so that every weight is rounded relative to the maximum
// over the tiles up to its own; with per_tensor the tiles stay and only the scales are shared.
#include "fovea/dense/fp8_attention.h"

#include <algorithm>
#include <bit>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/blend.h"
#include "fovea/kernels/fp8_attention.h"
#include "fovea/kernels/hadamard.h"

namespace fovea::dense {

Tensor draw_signs(int64_t dim, uint64_t seed) {
  const Tensor signs = random_uniform({dim}, seed);
  for (int64_t d = 0; d < dim; ++d) signs.at<float>(d) = signs.at<float>(d) < 0.5f ? -1.0f : 1.0f;
  return signs;
}

Tensor hadamard_rotate(const Tensor& x, const Tensor& signs) {
  const Tensor y = kernels::scale_channels(x, signs);
  kernels::hadamard_rows(y, x.dim(-1));
  return y;
}

kernels::AttentionResult fp8_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& given_signs, const Fp8AttentionOptions& options) {
  const int64_t block_q = options.per_tensor ? std::max<int64_t>(q.dim(2), 1) : options.block_q;
  const int64_t block_k = options.per_tensor ? std::max<int64_t>(k.dim(2), 1) : options.block_k;
  Tensor queries = q, keys = k;
  if (options.hadamard) {
    const Tensor signs =
        given_signs.defined() ? given_signs : draw_signs(q.dim(3), static_cast<uint64_t>(options.seed));
    queries = hadamard_rotate(q, signs);
    keys = hadamard_rotate(k, signs);
  }
  return kernels::fp8_forward(
      kernels::quantize_e4m3(queries, block_q), kernels::quantize_e4m3(keys, block_k),
      kernels::quantize_e4m3(v, block_k),
      {.block_q = block_q, .block_k = block_k, .key_tile = options.block_k},
      {.scale = static_cast<float>(options.scale),
       .visible = options.causal ? kernels::Visibility::causal() : kernels::Visibility::all()});
}

namespace {

struct BlockOption {
  int64_t block = 128;
  static constexpr auto fields() {
    return options::list(options::field(
        &BlockOption::block, "block", "rows per scale; the last block may be ragged", options::at_least(1)));
  }
};

}  // namespace

void register_fp8_attention(Catalogue& catalogue) {
  catalogue.add<options::None>("hadamard-rotate", Room::dense, 12)
      .summary("signs, then a Walsh-Hadamard rotation of the channels")
      .inputs({"x [...,D]", "signs [D]"})
      .outputs({"y [...,D]"})
      .requires_power_of_two("D")
      .runs([](const Tensors& in, const options::None&) -> Tensors {
        return {{"y", hadamard_rotate(in["x"], in["signs"])}};
      });
  catalogue.add<BlockOption>("fp8-block-quantize", Room::dense, 12)
      .summary("e4m3 codes with one scale per block of rows")
      .inputs({"x [B,H,T,D]"})
      .outputs({"codes [B,H,T,D] u8", "scales [B,H,ceil(T/block)]"})
      .runs([](const Tensors& in, const BlockOption& options) -> Tensors {
        const auto blocks = kernels::quantize_e4m3(in["x"], options.block);
        return {{"codes", blocks.codes}, {"scales", blocks.scales}};
      });
  catalogue.add<Fp8AttentionOptions>("flash-attention-fp8", Room::dense, 12)
      .summary("attention on e4m3 codes with block scales after a random rotation")
      .inputs({"q [B,Hq,Tq,D]", "k [B,Hkv,Tk,D]", "v [B,Hkv,Tk,Dv]", "signs? [D]"})
      .outputs({"o [B,Hq,Tq,Dv]", "lse [B,Hq,Tq]"})
      .forms({Form::decode, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .requires_that([](const Symbols& s, const Fp8AttentionOptions& options) -> std::string {
        const int64_t dim = s.at("D");
        if (!options.hadamard || (dim > 0 && std::has_single_bit(static_cast<uint64_t>(dim)))) return "";
        return "D = " + std::to_string(dim) + " is not a power of two, which hadamard=true needs";
      })
      .runs([](const Tensors& in, const Fp8AttentionOptions& options) -> Tensors {
        const auto result = fp8_attention(in["q"], in["k"], in["v"], in["signs"], options);
        return {{"o", result.o}, {"lse", result.lse}};
      });
}

}  // namespace fovea::dense
