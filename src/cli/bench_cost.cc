// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_cost.h"

#include <algorithm>
#include <numeric>

#include "fovea/sparse/plan.h"
#include "fovea/sparse/planner.h"

namespace fovea::cli {
namespace {

// Backward recomputes the scores and makes four more products of the same size: five against two.
constexpr double kBackwardOverForward = 2.5;

// Pairs (row, key) that exact attention reads: row i of Tq sees keys 0 .. i + Tk - Tq when causal.
double visible_pairs(const BenchProblem& problem) {
  const auto tq = static_cast<double>(problem.shape.length_q),
             tk = static_cast<double>(problem.shape.length_k);
  if (!problem.causal) return tq * tk;
  const double rows = std::min(tq, tk);  // rows that see anything
  return rows * (tk - rows) + rows * (rows + 1) / 2;
}

double mean(const std::vector<double>& values) {
  return values.empty()
             ? 0
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// All of the operator's option values, under the names that `known` has: a planner's defaults may differ from
// those of the operator it shares its name with.
options::Pairs options_known_to(const std::vector<options::Info>& known, const BenchProblem& problem) {
  options::Pairs pairs;
  for (const auto& info : problem.op->options) {
    const bool shared =
        std::any_of(known.begin(), known.end(), [&](const auto& other) { return other.name == info.name; });
    if (shared) pairs.emplace_back(info.name, option_value(problem, info));
  }
  return pairs;
}

// The planner that an operator follows: of its own name, or the one its `pattern` option names.
const sparse::PlannerEntry* planner_of(const BenchProblem& problem) {
  for (const auto& info : problem.op->options)
    if (info.name == "pattern")
      if (const auto* planner = sparse::find_planner(option_value(problem, info))) return planner;
  return sparse::find_planner(problem.op->name);
}

std::optional<double> plan_density_of(const BenchProblem& problem, const Tensors& inputs) {
  const Tensor q = inputs["q"], k = inputs["k"];
  if (const auto* planner = planner_of(problem); planner != nullptr && !planner->wraps && q.rank() == 4) {
    const auto plan = planner->make(options_known_to(planner->options, problem), nullptr)
                          ->plan(q.slice(0, 0, 1).to(DType::f32), k.slice(0, 0, 1).to(DType::f32));
    return mean(sparse::plan_density(plan));
  }
  if (const Tensor blocks = inputs["blocks"]; blocks && problem.causal) {
    const auto plan = sparse::plan_from_blocks(blocks, problem.symbols.at("block_q"),
                                               problem.symbols.at("block_k"), q.dim(2), k.dim(2));
    return mean(sparse::plan_density(plan));
  }
  return {};
}

// Keys on the pages that were read.
std::optional<double> page_density(const BenchProblem& problem, const Tensors&, const Tensors& outputs) {
  const Tensor pages = outputs["pages"];
  const int32_t* page = pages.data<int32_t>();
  const auto read = std::count_if(page, page + pages.size(), [](int32_t p) { return p >= 0; });
  const int64_t rows = pages.size() / std::max<int64_t>(1, pages.dim(-1));
  const double keys =
      static_cast<double>(rows) * visible_pairs(problem) / static_cast<double>(problem.shape.length_q);
  return std::min(1.0, static_cast<double>(read * problem.symbols.at("page_size")) / keys);
}

// Heads that read everything, and heads that read `sink` first and `recent` last keys.
std::optional<double> head_density(const BenchProblem& problem, const Tensors& inputs, const Tensors&) {
  if (problem.symbols.at("chunk_size") != 0) return {};
  const Tensor retrieval = inputs["retrieval"];
  const int64_t window = problem.symbols.at("sink") + problem.symbols.at("recent");
  const int64_t tq = problem.shape.length_q, tk = problem.shape.length_k;
  double pairs = 0;
  for (int64_t i = 0; i < tq; ++i)
    pairs += static_cast<double>(std::clamp<int64_t>(i + tk - tq + 1, 0, window));
  const double streaming = pairs / visible_pairs(problem);
  const auto full = std::count(retrieval.data<uint8_t>(), retrieval.data<uint8_t>() + retrieval.size(), 1);
  const double share = static_cast<double>(full) / static_cast<double>(retrieval.size());
  return share + (1 - share) * streaming;
}

// Operators whose density follows from their own inputs, outputs and options.
struct Override {
  std::string_view name;
  std::optional<double> (*density)(const BenchProblem&, const Tensors& inputs, const Tensors& outputs);
};
constexpr Override kOverrides[] = {{"quest", page_density}, {"duo-attention", head_density}};

std::optional<double> density_of(const BenchProblem& problem, const Tensors& inputs, const Tensors& outputs) {
  for (const auto& entry : kOverrides)
    if (entry.name == problem.op->name) return entry.density(problem, inputs, outputs);
  if (problem.op->room == Room::dense) return 1.0;
  return plan_density_of(problem, inputs);
}

bool is_attention(const Tensors& inputs, const Tensors& outputs) {
  return inputs.contains("q") && inputs.contains("k") && inputs.contains("v") && inputs["q"].rank() >= 3 &&
         (outputs.contains("o") || outputs.contains("dq"));
}

}  // namespace

BenchCost cost_of(const BenchProblem& problem, const Tensors& inputs, const Tensors& outputs) {
  BenchCost cost;
  for (const auto* tensors : {&inputs, &outputs})
    for (const auto& [name, tensor] : *tensors)
      cost.bytes += static_cast<double>(tensor.defined() ? tensor.bytes() : 0);
  if (!is_attention(inputs, outputs)) return cost;
  cost.density = density_of(problem, inputs, outputs);
  if (!cost.density) return cost;
  const auto& shape = problem.shape;
  const double products = 2.0 * static_cast<double>(shape.batch * shape.heads_q * (shape.dim + shape.dim_v));
  cost.flops = products * visible_pairs(problem) * *cost.density;
  if (outputs.contains("dq")) *cost.flops *= kBackwardOverForward;
  // With few queries a selection also leaves keys and values unread.
  if (shape.length_q == 1)
    cost.bytes -= (1 - *cost.density) * static_cast<double>(inputs["k"].bytes() + inputs["v"].bytes());
  return cost;
}

BenchBound bound_of(const BenchCost& cost, DType dtype, const kernels::Ceilings& ceilings) {
  BenchBound bound;
  bound.flops_ceiling =
      dtype == DType::bf16 && ceilings.bf16_flops > 0 ? ceilings.bf16_flops : ceilings.f32_flops;
  bound.bytes_ceiling = ceilings.read_bytes;
  const double compute = cost.flops.value_or(0) / bound.flops_ceiling;
  const double memory = cost.bytes / bound.bytes_ceiling;
  bound.limit = compute > memory ? "compute" : "memory";
  bound.seconds = std::max(compute, memory);
  return bound;
}

}  // namespace fovea::cli
