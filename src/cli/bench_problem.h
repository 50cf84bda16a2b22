// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fovea/core/operator.h"

namespace fovea::cli {

/// The sizes a benchmark is asked for.
struct BenchShape {
  int64_t batch = 1, heads_q = 8, heads_kv = 8;
  int64_t length_q = 4096, length_k = 4096;
  int64_t dim = 64, dim_v = 64;
  DType dtype = DType::f32;
};

/// One input that a benchmark will fill: its resolved shape and type.
struct BenchInput {
  const TensorSpec* spec;
  Shape shape;
  DType dtype;
};

/// An operator at one size. Every required input of its spec gets a shape from its symbols; optional inputs
/// are left out except those an operator cannot do without.
struct BenchProblem {
  const Operator* op = nullptr;
  BenchShape shape;
  options::Pairs options;
  bool causal = false;
  Symbols symbols;
  std::vector<BenchInput> inputs;

  /// For `Operator::supports`, before any memory is spent.
  Problem problem() const;
};

/// `causal` is put into the operator's option of that name where it has one: `wanted` true or false, or
/// nothing for the operator's default. `every_input` adds the optional inputs, short of a `mask` where there
/// are `blocks`.
BenchProblem plan_bench(const Operator& op, const BenchShape& shape, options::Pairs options,
                        std::optional<bool> wanted_causal, bool every_input = false);

/// The text of an option: as set, else its default.
std::string option_value(const BenchProblem& problem, const options::Info& info);

/// The tensors: seeded normals, and what the table of input makers says for indices, masks and scales.
Tensors make_inputs(const BenchProblem& problem);

}  // namespace fovea::cli
