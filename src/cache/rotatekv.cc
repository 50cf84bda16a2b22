// SPDX-License-Identifier: Apache-2.0
// RotateKV: outlier-aware adaptive rotations (Su et al. 2025, arXiv 2501.16383). For the N = Hkv*D key
// channels y of a token before rope, head after head:
//
//   y' = H_n y / sqrt(n)      on each run of n = head_group * D channels (Walsh-Hadamard)
//   z[c] = y'[perm[c]]        channels of like magnitude side by side
//   code = clamp(rint(z / scale) + zero, 0, 2^bits - 1)   per run of group_size channels
//
// Reading undoes the three in reverse and then applies rope. Tokens that own massive activations are kept as
// they are. The statistics that order the channels use the sign of the sums, as the published code does.
#include "fovea/cache/rotatekv.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "fovea/core/catalogue.h"
#include "fovea/kernels/hadamard.h"
#include "fovea/kernels/permute.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/rope.h"
#include "fovea/kernels/rows.h"

namespace fovea::cache {
namespace {

/// What is wrong with storing rows of heads x dim channels this way, or an empty string.
std::string misfit(int64_t heads, int64_t dim, int64_t head_group) {
  if (head_group < 1 || heads % head_group != 0)
    return "head_group = " + std::to_string(head_group) + " does not divide Hkv = " + std::to_string(heads);
  const int64_t run = head_group * dim;
  if (run < 1 || !std::has_single_bit(static_cast<uint64_t>(run)))
    return "head_group * D = " + std::to_string(run) + " is not a power of two";
  return "";
}

std::string misfit(const RotateKvOptions& options, int64_t heads, int64_t dim) {
  const std::string rotation = misfit(heads, dim, options.head_group);
  if (!rotation.empty() || (heads * dim) % options.group_size == 0) return rotation;
  return "group_size = " + std::to_string(options.group_size) +
         " does not divide Hkv*D = " + std::to_string(heads * dim);
}

/// Rows of the tokens whose mask is 1 come from `exact`: both [B,H,T,D], mask u8 [B,T].
void restore_sinks(const Tensor& exact, const Tensor& mask, const Tensor& x_hat) {
  for (int64_t b = 0; b < mask.dim(0); ++b)
    for (int64_t t = 0; t < mask.dim(1); ++t)
      if (mask.at<uint8_t>(b, t) != 0)
        x_hat.select(0, b).slice(1, t, t + 1).copy_from(exact.select(0, b).slice(1, t, t + 1));
}

/// x as it comes back from storage.
Tensor reconstructed(const Tensor& x, const Tensor& perm, const Tensor& sink_mask,
                     const RotateKvOptions& options) {
  return rotatekv_quantize(x, perm, sink_mask, options).x_hat;
}

}  // namespace

void check_rows(const RotateKvOptions& options, int64_t heads, int64_t dim) {
  const std::string wrong = misfit(options, heads, dim);
  require(wrong.empty(), "rotatekv: ", wrong);
}

Tensor rotate_rows(const Tensor& x, const Tensor& perm, int64_t head_group) {
  const std::string wrong = misfit(x.dim(1), x.dim(3), head_group);
  require(wrong.empty(), "rotatekv: ", wrong);
  const Tensor rows = Tensor::empty({x.dim(0), x.dim(2), x.dim(1), x.dim(3)});
  rows.copy_from(x.transpose(1, 2));
  const Tensor y = rows.reshape({x.dim(0), x.dim(2), x.dim(1) * x.dim(3)});
  kernels::hadamard_rows(y, head_group * x.dim(3));
  return perm.defined() ? kernels::gather_channels(y, perm) : y;
}

Tensor unrotate_rows(const Tensor& z, const Tensor& perm, int64_t head_group, int64_t heads) {
  require(z.rank() == 3 && heads >= 1 && z.dim(2) % heads == 0, "rotatekv: rows ", z.describe(), " of ",
          heads, " heads");
  const int64_t dim = z.dim(2) / heads;
  const std::string wrong = misfit(heads, dim, head_group);
  require(wrong.empty(), "rotatekv: ", wrong);
  const Tensor y =
      perm.defined() ? kernels::gather_channels(z, kernels::inverse_permutation(perm)) : z.clone();
  kernels::hadamard_rows(y, head_group * dim);
  return y.reshape({z.dim(0), z.dim(1), heads, dim}).transpose(1, 2).contiguous();
}

kernels::AffineBlocks quantize_rows(const Tensor& x, const Tensor& perm, const RotateKvOptions& options) {
  check_rows(options, x.dim(1), x.dim(3));
  return kernels::quantize_affine(rotate_rows(x, perm, options.head_group), options.bits, options.group_size,
                                  static_cast<float>(options.clip_ratio));
}

Tensor reconstruct_rows(const kernels::AffineBlocks& rows, const Tensor& perm, const RotateKvOptions& options,
                        int64_t heads, int64_t dim) {
  check_rows(options, heads, dim);
  const Tensor z = kernels::dequantize_affine(rows, options.bits, options.group_size, heads * dim);
  return unrotate_rows(z, perm, options.head_group, heads);
}

Tensor rotatekv_calibrate(const Tensor& x, int64_t head_group) {
  const Tensor y = rotate_rows(x, {}, head_group);
  const int64_t tokens = y.dim(0) * y.dim(1), channels = y.dim(2);
  if (tokens == 0) return kernels::argsort_rows(Tensor::zeros({channels}));
  // The mean over all tokens orders channels as the sum does.
  const Tensor means = kernels::block_means(y.reshape({1, 1, tokens, channels}), tokens);
  return kernels::argsort_rows(means.reshape({channels}));
}

Tensor rotatekv_sinks(const Tensor& x, int64_t pivots) {
  const int64_t tokens = x.dim(1), width = x.dim(2);
  // Clearing the sign bit of f32 gives |x|, in place on a copy.
  const Tensor magnitudes = x.clone();
  auto* bits = static_cast<uint32_t*>(magnitudes.raw());
  for (int64_t i = 0; i < magnitudes.size(); ++i) bits[i] &= 0x7FFFFFFFu;
  const Tensor chosen = kernels::top_k_rows(magnitudes.reshape({x.dim(0), tokens * width}), pivots);
  const Tensor mask = Tensor::zeros({x.dim(0), tokens}, DType::u8);
  for (int64_t b = 0; b < chosen.dim(0); ++b)
    for (int64_t i = 0; i < chosen.dim(1); ++i) mask.at<uint8_t>(b, chosen.at<int32_t>(b, i) / width) = 1;
  return mask;
}

RotateKvRows rotatekv_quantize(const Tensor& x, const Tensor& perm, const Tensor& sink_mask,
                               const RotateKvOptions& options) {
  const auto rows = quantize_rows(x, perm, options);
  const Tensor x_hat = reconstruct_rows(rows, perm, options, x.dim(1), x.dim(3));
  if (sink_mask.defined()) restore_sinks(x, sink_mask, x_hat);
  return {rows, x_hat};
}

kernels::AttentionResult rotatekv_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& perm, const Tensor& sink_mask,
                                            const RotateKvAttentionOptions& options) {
  RotateKvOptions of_values = options;
  of_values.head_group = 1;
  const Tensor keys = reconstructed(k, perm, sink_mask, options);
  const Tensor values = reconstructed(v, {}, sink_mask, of_values);

  const int64_t tq = q.dim(2), tk = k.dim(2);
  const Tensor positions = Tensor::empty({tq + tk}, DType::i64);  // of the queries, then of the keys
  for (int64_t i = 0; i < tq; ++i) positions.at<int64_t>(i) = tk - tq + i;
  for (int64_t j = 0; j < tk; ++j) positions.at<int64_t>(tq + j) = j;
  const Tensor frequencies = kernels::rope_frequencies(q.dim(3), options.rope_theta);
  const Tensor queries = q.clone();
  kernels::apply_rope(queries, kernels::rope_table(positions.slice(0, 0, tq), frequencies));
  kernels::apply_rope(keys, kernels::rope_table(positions.slice(0, tq, tq + tk), frequencies));
  return kernels::flash_forward(queries, keys, values, {.visible = kernels::Visibility::causal()});
}

namespace {

struct DequantizeOptions {
  int bits = RotateKvOptions{}.bits;
  int64_t group_size = RotateKvOptions{}.group_size;
  int64_t head_group = RotateKvOptions{}.head_group;
  int64_t heads = 4;

  static constexpr auto fields() {
    using O = DequantizeOptions;
    return options::list(options::field(&O::bits, "bits", "code width", options::one_of("2,3,4,8")),
                         options::field(&O::group_size, "group_size", "channels per scale, divides Hkv*D",
                                        options::at_least(1)),
                         options::field(&O::head_group, "head_group", "heads rotated together, divides Hkv",
                                        options::at_least(1)),
                         options::field(&O::heads, "heads", "Hkv", options::at_least(1)));
  }
};

struct CalibrateOptions {
  int64_t head_group = RotateKvOptions{}.head_group;
  static constexpr auto fields() {
    return options::list(options::field(&CalibrateOptions::head_group, "head_group",
                                        "heads rotated together, divides Hkv", options::at_least(1)));
  }
};

struct SinkOptions {
  int64_t n_pivot = 20;
  static constexpr auto fields() {
    return options::list(options::field(&SinkOptions::n_pivot, "n_pivot",
                                        "largest activations whose tokens are sinks", options::at_least(0)));
  }
};

}  // namespace

void register_rotatekv(Catalogue& catalogue) {
  catalogue.add<RotateKvOptions>("rotatekv-quantize", Room::cache, 33)
      .summary("keys or values rotated across heads, reordered and stored in a few bits")
      .inputs({"x [B,Hkv,T,D]", "perm [Hkv*D] i32", "sink_mask [B,T] u8"})
      .outputs({"codes [B,T,ceil(Hkv*D*bits/8)] u8", "scale [B,T,Hkv*D/group_size]",
                "zero [B,T,Hkv*D/group_size]", "x_hat [B,Hkv,T,D]"})
      .requires_that([](const Symbols& s, const RotateKvOptions& options) {
        return misfit(options, s.at("Hkv"), s.at("D"));
      })
      .refuses_non_finite()
      .runs([](const Tensors& in, const RotateKvOptions& options) -> Tensors {
        const auto result = rotatekv_quantize(in["x"], in["perm"], in["sink_mask"], options);
        return {{"codes", result.rows.codes},
                {"scale", result.rows.scale},
                {"zero", result.rows.zero},
                {"x_hat", result.x_hat}};
      });
  catalogue.add<DequantizeOptions>("rotatekv-dequantize", Room::cache, 33)
      .summary("what rotatekv-quantize stored")
      .inputs({"codes [B,T,Bytes] u8", "scale [B,T,Groups]", "zero [B,T,Groups]", "perm [N] i32"})
      .outputs({"x_hat [B,heads,T,N/heads]"})
      .requires_that([](const Symbols& s, const DequantizeOptions& o) -> std::string {
        const int64_t n = s.at("N");
        if (n % o.heads != 0)
          return "heads = " + std::to_string(o.heads) + " does not divide the " + std::to_string(n) +
                 " channels of perm";
        if (n % o.group_size == 0 &&
            (s.at("Groups") != n / o.group_size || s.at("Bytes") != (n * o.bits + 7) / 8))
          return "rows of " + std::to_string(n) + " channels have " + std::to_string((n * o.bits + 7) / 8) +
                 " bytes of codes and " + std::to_string(n / o.group_size) + " scales, got " +
                 std::to_string(s.at("Bytes")) + " and " + std::to_string(s.at("Groups"));
        return misfit({o.bits, o.group_size, o.head_group, 1.0}, o.heads, n / o.heads);
      })
      .runs([](const Tensors& in, const DequantizeOptions& o) -> Tensors {
        return {{"x_hat", reconstruct_rows({in["codes"], in["scale"], in["zero"]}, in["perm"],
                                           {o.bits, o.group_size, o.head_group, 1.0}, o.heads,
                                           in["perm"].dim(0) / o.heads)}};
      });
  catalogue.add<CalibrateOptions>("rotatekv-calibrate", Room::cache, 33)
      .summary("the order of channels by their rotated sums")
      .inputs({"x [B,Hkv,T,D]"})
      .outputs({"perm [Hkv*D] i32"})
      .requires_that([](const Symbols& s, const CalibrateOptions& options) {
        return misfit(s.at("Hkv"), s.at("D"), options.head_group);
      })
      .refuses_non_finite()
      .runs([](const Tensors& in, const CalibrateOptions& options) -> Tensors {
        return {{"perm", rotatekv_calibrate(in["x"], options.head_group)}};
      });
  catalogue.add<SinkOptions>("rotatekv-sinks", Room::cache, 33)
      .summary("tokens with massive activations, which stay unquantised")
      .inputs({"x [B,T,E]"})
      .outputs({"sink_mask [B,T] u8"})
      .refuses_non_finite()
      .runs([](const Tensors& in, const SinkOptions& options) -> Tensors {
        return {{"sink_mask", rotatekv_sinks(in["x"], options.n_pivot)}};
      });
  catalogue.add<RotateKvAttentionOptions>("rotatekv-attention", Room::cache, 33)
      .summary("causal attention with rope over keys and values that went through rotated quantisation")
      .inputs(
          {"q [B,Hq,Tq,D]", "k [B,Hkv,Tk,D]", "v [B,Hkv,Tk,D]", "perm [Hkv*D] i32", "sink_mask [B,Tk] u8"})
      .outputs({"o [B,Hq,Tq,D]", "lse [B,Hq,Tq]"})
      .forms({Form::decode, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .requires_that([](const Symbols& s, const RotateKvAttentionOptions& options) {
        return misfit(options, s.at("Hkv"), s.at("D"));
      })
      .refuses_non_finite()
      .runs([](const Tensors& in, const RotateKvAttentionOptions& options) -> Tensors {
        const auto result =
            rotatekv_attention(in["q"], in["k"], in["v"], in["perm"], in["sink_mask"], options);
        return {{"o", result.o}, {"lse", result.lse}};
      });
}

}  // namespace fovea::cache
