// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

/// `fovea bench --kernels`: the loops under the operators, each beside the ceiling that binds it.
namespace fovea::cli {

struct KernelBenchOptions {
  int repeat = 0;  ///< 0: until the median is steady
  bool json = false;
};

/// Runs the cases of the named groups (none: of all) and prints a table, or a JSON array. Throws Error for a
/// name that is no group.
void bench_kernels(const std::vector<std::string>& groups, const KernelBenchOptions& options);

}  // namespace fovea::cli
