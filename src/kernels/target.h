// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

/// Which SIMD instruction set the CPU kernels use. The best one that the processor has is chosen at start.
namespace fovea::kernels {

/// Names of the compiled targets this processor can run, best first: "AVX3+AMX", "AVX3+BF16", "AVX3", "AVX2",
/// ... Those with a plus multiply bf16 by AMX tiles or by AVX512-BF16 dots; the others widen bf16 to f32.
std::vector<std::string> simd_targets();
/// The one in use.
std::string active_simd_target();
/// Uses `name` from now on, or the best one again for an empty name. Not while a kernel is running. Throws
/// Error when the target is not one of simd_targets().
void force_simd_target(std::string_view name);

}  // namespace fovea::kernels
