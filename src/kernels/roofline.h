// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// What the machine can do at most, measured: the ceilings that benchmarks compare with.
namespace fovea::kernels {

/// Rates per second with the current number of threads (fovea::threads()). A multiply-add counts as two
/// operations; a rate is 0 where the processor has no such instruction.
struct Ceilings {
  int threads = 0;
  double f32_flops = 0;   ///< fused multiply-adds of floats from registers
  double bf16_flops = 0;  ///< bf16 products summed in floats: pairwise dots, or AMX tiles
  double int8_ops = 0;    ///< four-way u8 x i8 dot products into 32-bit integers
  double read_bytes = 0;  ///< reading memory well beyond the caches
  double copy_bytes = 0;  ///< copying: bytes read plus bytes written
};

/// Measures all rates; takes about `seconds` in total, best of several rounds. Bandwidths use `buffer_bytes`
/// in all.
Ceilings measure_ceilings(double seconds = 2.0, int64_t buffer_bytes = int64_t{256} << 20);

}  // namespace fovea::kernels
