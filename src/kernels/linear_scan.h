// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

/// Attention without softmax, as a recurrence over a state of fixed size. For each kv head, S_-1 = `state` or
/// 0:
///
///   S' = Diag(a_t) S_{t-1}      S_t = S' + beta_t k_t^T (v_t - delta k_t S')      o_t = scale q_t S_t
///
/// with a_t = exp(log_decay_t) and delta = 0 (additive) or 1 (delta rule).
///
/// Shapes: q [B,Hq,T,D], k [B,Hkv,T,D], v [B,Hkv,T,Dv] of one type (f32, f16 or bf16; arithmetic in f32), any
/// strides with a contiguous last axis. Query head h reads the state of kv head h / (Hq/Hkv). Results do not
/// depend on the number of threads. NaN and infinity in q, k, v propagate to the rows of their chunk and to
/// those that follow. A normaliser (z_t = a_t z_{t-1} + beta_t k_t, o_t / q_t.z_t) is one more column of ones
/// in v.
namespace fovea::kernels {

struct LinearScanParams {
  float scale = 1;
  bool delta = false;  ///< additive or delta rule; the latter is stable while beta |k|^2 <= 2
  /// ln a, f32, one of [Hkv], [B,Hkv,T], [B,Hkv,T,D] (a decay for each channel); undefined: no decay. At most
  /// 0; -inf forgets all that came before. Only products of a's are formed, never a ratio.
  Tensor log_decay;
  Tensor beta;        ///< [B,Hkv,T] f32; undefined: 1
  Tensor state;       ///< [B,Hkv,D,Dv] f32, before the first token; undefined: 0
  int64_t chunk = 0;  ///< tokens that are treated as one matrix product, a multiple of 16 up to 256; 0: the
                      ///< kernel's choice
};

/// o [B,Hq,T,Dv] in the type of v; state [B,Hkv,D,Dv] f32 after the last token, from which a scan of the
/// tokens that follow, or steps, go on.
struct LinearScanResult {
  Tensor o, state;
};

LinearScanResult linear_scan(const Tensor& q, const Tensor& k, const Tensor& v,
                             const LinearScanParams& params = {});

/// The state after the last token, without outputs.
Tensor linear_scan_state(const Tensor& k, const Tensor& v, const LinearScanParams& params = {});

/// o = scale q S in the type of q, every row reading the same state [B,Hkv,D,Dv] f32: with linear_scan_state,
/// linear attention that is not causal.
Tensor linear_scan_read(const Tensor& q, const Tensor& state, float scale = 1);

/// One token: T = 1. Reads `state` (params.state is not used) and writes `next`, both [B,Hkv,D,Dv] f32 with a
/// contiguous last axis; `next` may be `state`. Returns o [B,Hq,1,Dv].
Tensor linear_scan_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                        const Tensor& next, const LinearScanParams& params = {});

/// Gradients of the inputs, in their types and shapes; d_log_decay, d_beta and d_state (f32) only where their
/// input was given.
struct LinearScanGradients {
  Tensor dq, dk, dv, d_log_decay, d_beta, d_state;
};

/// `d_o` [B,Hq,T,Dv] is the gradient of o, `d_final_state` [B,Hkv,D,Dv] f32 (may be undefined: 0) that of the
/// state after the last token. States are computed again and kept at chunk boundaries, for the heads at work:
/// D Dv / chunk floats for each token and thread.
LinearScanGradients linear_scan_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
                                         const LinearScanParams& params = {},
                                         const Tensor& d_final_state = {});

}  // namespace fovea::kernels
