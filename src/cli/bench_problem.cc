// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_problem.h"

#include <algorithm>
#include <cctype>

namespace fovea::cli {
namespace {

// Symbols whose sizes follow from the command line; everything else is an option or small.
Symbols symbols_of(const Operator& op, const BenchShape& shape, const options::Pairs& pairs) {
  const int64_t e = shape.heads_q * shape.dim;
  Symbols symbols = {{"B", shape.batch},
                     {"H", shape.heads_q},
                     {"Hq", shape.heads_q},
                     {"Hkv", shape.heads_kv},
                     {"T", shape.length_k},
                     {"Tq", shape.length_q},
                     {"Tk", shape.length_k},
                     {"D", shape.dim},
                     {"Dv", shape.dim_v},
                     {"E", e},
                     {"F", 4 * e},
                     {"n", shape.batch},
                     {"Nq", shape.batch * shape.length_q},
                     {"Nk", shape.batch * shape.length_k}};
  for (const auto& info : op.options) {
    if (info.type != "int") continue;
    std::string text = info.default_value;
    for (const auto& [key, value] : pairs)
      if (key == info.name || key == info.alias) text = value;
    options::parse(text, op.name + ": option " + info.name, symbols[info.name]);
  }
  return symbols;
}

// Axes that no flag speaks of (parts to merge, candidates, layers) are short.
constexpr int64_t kOtherAxis = 4;

int64_t axis_size(std::string_view text, Symbols& symbols) {
  if (text.starts_with("1|")) return 1;
  if (const auto value = evaluate(text, symbols)) return *value;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_'))
      ++end;
    const std::string word(text.substr(at, end - at));
    const bool function = end < text.size() && text[end] == '(';
    if (!word.empty() && std::isalpha(static_cast<unsigned char>(word[0])) && !function)
      symbols.emplace(word, kOtherAxis);
    at = std::max(end, at + 1);
  }
  return evaluate(text, symbols).value_or(kOtherAxis);
}

// plan-attention and its kin take a mask or blocks, both optional in the spec: blocks keep long lengths
// affordable.
bool is_needed(const Operator& op, const TensorSpec& spec) {
  if (!spec.optional) return true;
  const auto has_optional = [&](std::string_view name) {
    return std::any_of(op.inputs.begin(), op.inputs.end(),
                       [&](const auto& other) { return other.optional && other.name == name; });
  };
  return spec.name == "blocks" && has_optional("mask");
}

}  // namespace

Problem BenchProblem::problem() const {
  Problem result{{}, options};
  for (const auto& input : inputs)
    result.inputs.push_back({input.spec->name, input.shape, input.dtype, Device::cpu()});
  return result;
}

BenchProblem plan_bench(const Operator& op, const BenchShape& shape, options::Pairs pairs,
                        std::optional<bool> wanted_causal) {
  BenchProblem problem{&op, shape, std::move(pairs), false, {}, {}};
  const auto causal = std::find_if(op.options.begin(), op.options.end(),
                                   [](const auto& info) { return info.name == "causal"; });
  if (causal != op.options.end()) {
    if (wanted_causal) problem.options.emplace_back("causal", options::print(*wanted_causal));
    std::string text = causal->default_value;
    for (const auto& [key, value] : problem.options)
      if (key == "causal") text = value;
    options::parse(text, op.name + ": option causal", problem.causal);
  } else {
    problem.causal = op.has(Form::causal) || op.has(Form::decode);
  }
  problem.symbols = symbols_of(op, shape, problem.options);
  bool takes_dtype = shape.dtype == DType::f32;
  for (const auto& spec : op.inputs) {
    if (!is_needed(op, spec)) continue;
    Shape sizes;
    if (spec.any_leading) sizes = {shape.batch, shape.heads_q, shape.length_k};
    for (const auto& axis : spec.axes) sizes.push_back(axis_size(axis, problem.symbols));
    const bool choice = spec.shares_type &&
                        std::find(spec.dtypes.begin(), spec.dtypes.end(), shape.dtype) != spec.dtypes.end();
    takes_dtype = takes_dtype || choice;
    problem.inputs.push_back({&spec, sizes, choice ? shape.dtype : spec.dtypes.front()});
  }
  require(takes_dtype, op.name, ": --dtype ", name_of(shape.dtype), " is not a type of its inputs");
  return problem;
}

}  // namespace fovea::cli
