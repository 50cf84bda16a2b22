// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/quantize.h"

/// RotateKV: keys and values in a few bits, after a Hadamard rotation across heads and a reordering of
/// channels. Su et al. 2025, arXiv 2501.16383.
namespace fovea::cache {

/// How a token row of N = Hkv*D channels is stored.
struct RotateKvOptions {
  int bits = 2;
  int64_t group_size = 64;
  int64_t head_group = 4;
  double clip_ratio = 1.0;

  static constexpr auto fields() {
    return options::list(
        options::field(&RotateKvOptions::bits, "bits", "code width", options::one_of("2,3,4,8")),
        options::field(&RotateKvOptions::group_size, "group_size", "channels per scale, divides Hkv*D",
                       options::at_least(1))
            .alias("group"),
        options::field(&RotateKvOptions::head_group, "head_group", "heads rotated together, divides Hkv",
                       options::at_least(1)),
        options::field(&RotateKvOptions::clip_ratio, "clip_ratio", "factor on the minimum and maximum",
                       options::above_up_to(0, 1)));
  }
};

/// Throws unless the options fit rows of `heads` x `dim` channels: head_group divides heads, head_group*dim
/// is a power of two, group_size divides heads*dim.
void check_rows(const RotateKvOptions& options, int64_t heads, int64_t dim);

/// Rows of all heads, rotated in groups of `head_group` heads and reordered: x [B,H,T,D] -> z [B,T,H*D], z[c]
/// = y[perm[c]]. perm i32 [H*D], a permutation; undefined: identity.
Tensor rotate_rows(const Tensor& x, const Tensor& perm, int64_t head_group);
/// The inverse: z [B,T,heads*D] -> x [B,heads,T,D].
Tensor unrotate_rows(const Tensor& z, const Tensor& perm, int64_t head_group, int64_t heads);

/// x [B,H,T,D] -> codes u8 [B,T,ceil(H*D*bits/8)], scale and zero f32 [B,T,H*D/group_size].
kernels::AffineBlocks quantize_rows(const Tensor& x, const Tensor& perm, const RotateKvOptions& options);
/// What quantize_rows stored: [B,heads,T,dim].
Tensor reconstruct_rows(const kernels::AffineBlocks& rows, const Tensor& perm, const RotateKvOptions& options,
                        int64_t heads, int64_t dim);

/// The order of channels: signed sums of the rotated channels of x [B,H,T,D] over all tokens, ascending, the
/// lower channel first among equals -> perm i32 [H*D].
Tensor rotatekv_calibrate(const Tensor& x, int64_t head_group);

/// Tokens that own one of the `pivots` entries of largest magnitude of their sequence: hidden x [B,T,E] ->
/// u8 [B,T]. Equal magnitudes: the lower flat index t*E + e wins.
Tensor rotatekv_sinks(const Tensor& x, int64_t pivots);

struct RotateKvRows {
  kernels::AffineBlocks rows;  ///< of every token, sinks too
  Tensor x_hat;                ///< [B,Hkv,T,D], x itself where sink_mask is 1
};
/// sink_mask u8 [B,T] (undefined: no sinks).
RotateKvRows rotatekv_quantize(const Tensor& x, const Tensor& perm, const Tensor& sink_mask,
                               const RotateKvOptions& options = {});

struct RotateKvAttentionOptions : RotateKvOptions {
  double rope_theta = 10000.0;

  static constexpr auto fields() {
    return std::tuple_cat(RotateKvOptions::fields(),
                          options::list(options::field(&RotateKvAttentionOptions::rope_theta, "rope_theta",
                                                       "base of the rotary angles", options::above(0))));
  }
};

/// Causal attention over reconstructed keys and values: q [B,Hq,Tq,D], k [B,Hkv,Tk,D] before rope, v
/// [B,Hkv,Tk,D]; values are rotated per head and keep their order. Row i of q stands at position Tk-Tq+i.
kernels::AttentionResult rotatekv_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& perm, const Tensor& sink_mask,
                                            const RotateKvAttentionOptions& options = {});

}  // namespace fovea::cache
