// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/linear_scan_args.h"

namespace fovea::kernels::cpu {

/// A checked problem and where its results go.
struct LinearScanProblem {
  LinearScanArgs args;
  View o;          ///< null with q
  View state_out;  ///< [batch, head, D, Dv]
};
void run_linear_scan(const LinearScanProblem& problem);
/// One token; state_out may be the state.
void run_linear_scan_step(const LinearScanProblem& problem);
/// o = scale q S; k and v are not used.
void run_linear_scan_read(const LinearScanProblem& problem);

struct LinearScanBackwardProblem {
  LinearScanArgs args;
  View d_o, d_final_state;  ///< the latter may be null
  View dq, dk, dv, d_state;
  View d_log_decay;              ///< of the tokens, also where a head has one decay
  float* d_beta = nullptr;       ///< [B,Hkv,T]
  double* d_log_head = nullptr;  ///< [B,Hkv]
};
void run_linear_scan_backward(const LinearScanBackwardProblem& problem);

}  // namespace fovea::kernels::cpu
