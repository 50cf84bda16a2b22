// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/kernels/key_plan.h"
#include "fovea/kernels/quantize.h"

/// Exact softmax attention over all, planned or selected keys.
///
/// Shapes: q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv] of one type (f32, f16 or bf16), any strides with a
/// contiguous last axis. Query head h reads kv head h / (Hq/Hkv). Results do not depend on the number of
/// threads. A row that sees no key gives o = 0, lse = -inf. NaN and infinity in q, k, v propagate to the rows
/// that see them.
///
/// Arithmetic is in f32, relative error about 1e-6. Where the processor multiplies bf16 (see target.h), the
/// forward kernels and decode multiply bf16 inputs natively: products are exact and summed in f32, weights
/// are rounded to bf16, o has a relative error of about 2.3e-3 (1.7e-3 of it from its own rounding) and below
/// 4e-3, lse about 1e-6. Windows of at most 128 keys, and plans of few rows, stay in f32.
namespace fovea::kernels {

/// o [B,Hq,Tq,Dv] in the type of v, lse [B,Hq,Tq] f32: the natural log of the sum of exp of the scaled,
/// masked scores. Results over parts of the keys merge exactly; see `merge`.
struct AttentionResult {
  Tensor o, lse;
};

/// Which keys a row sees. Row i stands at position p = i + Tk - Tq (k_len[b] in place of Tk where given); key
/// j is visible when j < Tk, j <= p + window_right (if >= 0), and j >= p - window_left (if >= 0) or j <
/// prefix.
struct Visibility {
  int64_t window_left = -1;
  int64_t window_right = -1;
  int64_t prefix = 0;  ///< first keys that the left window edge does not hide (attention sinks)

  static constexpr Visibility all() { return {}; }
  static constexpr Visibility causal() { return {.window_right = 0}; }
};

/// What multiplies q and k.
enum class ScoreArithmetic {
  automatic,  ///< native bf16 for bf16 inputs where the processor has it, else f32
  f32,        ///< f32 for everything, values too
  /// q and k as 8-bit codes with one scale a row: an element is off by at most 1/254 of the largest in its
  /// row, a score of normal data by about scale |q| |k| / (120 sqrt D). A mean that all keys share is best
  /// subtracted first: that does not change the softmax. Values as with `automatic`. Forward only, D <= 1024.
  int8,
};

/// How scores are made: s = softcap(scale q.k + bias), then visibility and mask.
struct AttentionParams {
  float scale = 0;    ///< 0 means 1/sqrt(D)
  float softcap = 0;  ///< s = softcap tanh(s / softcap); 0 is off
  Visibility visible;
  Tensor k_len;           ///< [B] i32, keys of each batch row, 0..Tk
  Tensor sink;            ///< [Hq] f32: one more term exp(sink) in the softmax denominator
  Tensor bias;            ///< [1|B,1|Hq,Tq,Tk] f32, added to the scaled score
  Tensor mask;            ///< [1|B,1|Hq,Tq,Tk] u8, 1 = visible; tiles without a visible key are skipped
  Tensor slopes;          ///< [Hq] f32: adds -slope * |p - j| (ALiBi)
  Tensor bias_q, bias_k;  ///< [1|B,1|Hq,Tq,R], [1|B,1|Hq,Tk,R] f32: adds bias_q . bias_k
  int64_t query_tile = 0, key_tile = 0;  ///< 0: the kernel's choice
  /// Of the forward kernels; backward computes in f32 and refuses int8, decode refuses all but automatic.
  ScoreArithmetic scores = ScoreArithmetic::automatic;
};

AttentionResult flash_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                              const AttentionParams& params = {});

/// The unnormalised softmax over the keys, f32: m [B,Hq,Tq] the largest score (-inf where nothing is seen), s
/// [B,Hq,Tq] = sum exp(score - m), a [B,Hq,Tq,Dv] = sum exp(score - m) v.
struct AttentionSummary {
  Tensor m, s, a;
};
/// Everything of `params` but sink, which belongs to a whole softmax and is refused.
AttentionSummary flash_summary(const Tensor& q, const Tensor& k, const Tensor& v,
                               const AttentionParams& params = {});

/// Gradients of the inputs, in their types; dsink [Hq] and dbias (shape of bias, summed over broadcast axes),
/// both f32, only where sink and bias were given.
struct AttentionGradients {
  Tensor dq, dk, dv, dsink, dbias;
};

/// Recomputes the probabilities from lse; no Tq x Tk tensor is stored. `o` and `lse` are the forward's, `d_o`
/// [B,Hq,Tq,Dv] is the gradient of o, `d_lse` [B,Hq,Tq] (may be undefined) that of lse.
AttentionGradients flash_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const AttentionResult& forward, const Tensor& d_o,
                                  const AttentionParams& params = {}, const Tensor& d_lse = {});

/// Ragged batch: q [Nq,Hq,D], k [Nk,Hkv,D], v [Nk,Hkv,Dv]; sequence s owns query rows cu_q[s]..cu_q[s+1] and
/// keys cu_k[s]..cu_k[s+1] (i32, ascending, from 0 to Nq and Nk). o [Nq,Hq,Dv], lse [Hq,Nq].
AttentionResult flash_forward_varlen(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q,
                                     const Tensor& cu_k, const AttentionParams& params = {});

/// The same softmax restricted to the keys of `plan` (and to params.visible).
AttentionResult plan_forward(const Tensor& q, const Tensor& k, const Tensor& v, const KeyPlan& plan,
                             const AttentionParams& params = {});
AttentionGradients plan_backward(const Tensor& q, const Tensor& k, const Tensor& v, const KeyPlan& plan,
                                 const AttentionResult& forward, const Tensor& d_o,
                                 const AttentionParams& params = {});

/// Keys and values in pages: k [P,Hkv,S,D], v [P,Hkv,S,Dv] with S tokens a page; sequence b has lengths[b]
/// tokens, in the pages table[b,0], table[b,1], ...
struct PagedKv {
  Tensor k, v;
  Tensor table;    ///< [B,max_pages] i32
  Tensor lengths;  ///< [B] i32
  /// > 0: k [B,Hkv,T,D] and v [B,Hkv,T,Dv] are whole sequences, seen as pages of this many tokens (the last
  /// may be ragged); `table` is then not used. 0: pages, as above.
  int64_t sequence_page = 0;

  /// Whole sequences (any strides with a contiguous last axis; nothing is copied) of length T each. Callers
  /// may replace `lengths`.
  static PagedKv of(const Tensor& k, const Tensor& v, int64_t page_size);
  /// Tokens in a page.
  int64_t page_size() const { return sequence_page > 0 ? sequence_page : k.dim(2); }
};

/// A few query rows over long caches: each key and value is read once per kv head; keys are split so that one
/// sequence uses all threads, at split points that depend on its length alone. Row i of q [B,Hq,Tq,D] stands
/// at position length - Tq + i and sees keys up to itself, whatever window_right is. `pages` [B,Hq,Tq,R] i32
/// (may be undefined: all) lists the pages each row reads, in any order, -1 where unused. k_len, bias_q and
/// bias_k are refused: lengths stand in `kv`, and the Tk of bias and mask must cover the longest of them.
AttentionResult decode(const Tensor& q, const PagedKv& kv, const Tensor& pages = {},
                       const AttentionParams& params = {});

/// Keys and values of one sequence that are held in another form, such as codes of a few bits, and become f32
/// a few at a time, within the cache of the core that then attends to them.
struct CodedKv {
  int64_t heads = 0, dim = 0, dim_v = 0, length = 0;
  int64_t heads_together = 1;  ///< kv heads that are read in one call; divides heads
  /// Writes tokens token .. token+count-1 of heads head .. head+heads_together-1: k
  /// [count,heads_together,dim] and v [count,heads_together,dim_v], contiguous. Called by several threads at
  /// a time.
  std::function<void(int64_t head, int64_t token, int64_t count, float* k, float* v)> read;
  /// [heads], or empty: what `read` would decode, where that is rows of codes. Where the processor can,
  /// scores and sums are then taken from the codes themselves, with queries and weights rounded to 16 bits
  /// (outputs differ by up to 1e-4 of the values' magnitude); `read` serves keys that only some rows see.
  std::vector<AffineRows> rows_k = {}, rows_v = {};
};
/// The same over such a sequence: q [1,Hq,Tq,D] f32. `pages` are of `page_size` tokens each.
AttentionResult decode(const Tensor& q, const CodedKv& kv, const Tensor& pages = {}, int64_t page_size = 0,
                       const AttentionParams& params = {});

/// Merges results over disjoint sets of keys: L = log sum exp lse_n, o = sum exp(lse_n - L) o_n. Parts with
/// lse = -inf count for nothing.
AttentionResult merge(std::span<const AttentionResult> parts);

}  // namespace fovea::kernels
