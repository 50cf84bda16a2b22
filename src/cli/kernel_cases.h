// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fovea/core/dtype.h"

namespace fovea::cli {

/// One kernel at one size.
struct KernelCase {
  std::string problem;            ///< as a reader sees it: "bf16 causal T=8192 heads 9/3 D=64"
  double flops = 0, bytes = 0;    ///< useful operations; bytes read and written at least once
  DType arithmetic = DType::f32;  ///< whose ceiling bounds the operations
  std::function<std::function<void()>()> prepare;  ///< makes the inputs; what it returns is timed
  int threads = 0;                                 ///< 0: as many as the program uses
  int beside = -1;                                 ///< index of the case of the group it is compared with
};

struct KernelGroup {
  std::string name, summary;
  std::vector<KernelCase> (*cases)();
};

/// Cases of kernel_cases_linear.cc.
std::vector<KernelCase> scan_cases();
std::vector<KernelCase> product_cases();

/// All groups, in the order they are run.
const std::vector<KernelGroup>& kernel_groups();

}  // namespace fovea::cli
