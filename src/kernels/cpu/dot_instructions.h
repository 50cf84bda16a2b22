// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Dot-product instructions that Highway 1.0 does not reach, as probes of their peak rate.
namespace fovea::kernels {

bool has_bf16_dot();
bool has_int8_dot();

/// `rounds` rounds of independent dot products from registers; returns the operations done. Only where the
/// function above says so.
double bf16_dot_rounds(int64_t rounds, float* sink);
double int8_dot_rounds(int64_t rounds, float* sink);

}  // namespace fovea::kernels
