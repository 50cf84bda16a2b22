// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Dot-product instructions that Highway 1.0 does not reach: whether they are there, and their peak rates.
namespace fovea::kernels {

bool has_bf16_dot();
bool has_int8_dot();
/// AMX tiles of bf16; the first call asks the system to let this process use them.
bool has_bf16_tiles();

/// `rounds` rounds of independent dot products from registers; returns the operations done. Only where the
/// functions above say so.
double bf16_dot_rounds(int64_t rounds, float* sink);
double int8_dot_rounds(int64_t rounds, float* sink);

}  // namespace fovea::kernels
