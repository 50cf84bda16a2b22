// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "cli/bench_problem.h"
#include "fovea/kernels/roofline.h"

namespace fovea::cli {

/// What an operator must do at least: the numbers a time is compared with.
struct BenchCost {
  std::optional<double> flops;    ///< multiply and add count as two; unknown for operators without a model
  double bytes = 0;               ///< inputs and outputs, each touched once
  std::optional<double> density;  ///< keys read over keys visible to exact attention; unknown likewise
};

BenchCost cost_of(const BenchProblem& problem, const Tensors& inputs, const Tensors& outputs);

/// Which ceiling bounds the cost, and the seconds it would take at that ceiling.
struct BenchBound {
  std::string limit;  ///< "compute" or "memory"
  double seconds = 0;
  double flops_ceiling = 0, bytes_ceiling = 0;
};
BenchBound bound_of(const BenchCost& cost, DType dtype, const kernels::Ceilings& ceilings);

}  // namespace fovea::cli
