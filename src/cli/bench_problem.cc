// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_problem.h"

#include <algorithm>
#include <cctype>

namespace fovea::cli {
namespace {

std::string value_of(const options::Info& info, const options::Pairs& pairs) {
  std::string text = info.default_value;
  for (const auto& [key, value] : pairs)
    if (key == info.name || key == info.alias) text = value;
  return text;
}

bool is_set(const options::Info& info, const options::Pairs& pairs) {
  return std::any_of(pairs.begin(), pairs.end(),
                     [&](const auto& pair) { return pair.first == info.name || pair.first == info.alias; });
}

// Sizes that an operator's spec cannot tell from the flags: an option that stands for a number of heads, or
// the length of an axis that packs several symbols.
struct Assumption {
  std::string_view operator_name;  // empty: every operator
  const char* symbol;
  const char* expression;
};
constexpr Assumption kAssumptions[] = {
    {"rotatekv-dequantize", "heads", "Hkv"},
    {"rotatekv-dequantize", "N", "Hkv*D"},
    {"rotatekv-dequantize", "Bytes", "ceil(Hkv*D*bits/8)"},
    {"rotatekv-dequantize", "Groups", "Hkv*D/group_size"},
    {"", "heads", "Hq"},
    {"", "n", "B"},
};

// Gives the operator's options the sizes that the flags ask for, unless --set did.
void assume(const Operator& op, options::Pairs& pairs, Symbols& symbols) {
  for (const auto& assumption : kAssumptions) {
    if (!assumption.operator_name.empty() && assumption.operator_name != op.name) continue;
    const auto option = std::find_if(op.options.begin(), op.options.end(),
                                     [&](const auto& info) { return info.name == assumption.symbol; });
    const auto value = evaluate(assumption.expression, symbols);
    if (!value) continue;
    if (option == op.options.end()) {
      symbols.emplace(assumption.symbol, *value);
    } else if (!is_set(*option, pairs)) {
      pairs.emplace_back(assumption.symbol, std::to_string(*value));
      symbols[assumption.symbol] = *value;
    }
  }
}

// Symbols whose sizes follow from the command line; everything else is an option, assumed, or small.
Symbols symbols_of(const Operator& op, const BenchShape& shape, options::Pairs& pairs) {
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
                     {"Nq", shape.batch * shape.length_q},
                     {"Nk", shape.batch * shape.length_k}};
  for (const auto& info : op.options)
    if (info.type == "int")
      options::parse(value_of(info, pairs), op.name + ": option " + info.name, symbols[info.name]);
  assume(op, pairs, symbols);
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
bool is_needed(const Operator& op, const TensorSpec& spec, bool every_input) {
  if (!spec.optional) return true;
  const auto has_optional = [&](std::string_view name) {
    return std::any_of(op.inputs.begin(), op.inputs.end(),
                       [&](const auto& other) { return other.optional && other.name == name; });
  };
  if (spec.name == "blocks") return has_optional("mask") || every_input;
  return every_input && !(spec.name == "mask" && has_optional("blocks"));
}

}  // namespace

std::string option_value(const BenchProblem& problem, const options::Info& info) {
  return value_of(info, problem.options);
}

Problem BenchProblem::problem() const {
  Problem result{{}, options};
  for (const auto& input : inputs)
    result.inputs.push_back({input.spec->name, input.shape, input.dtype, Device::cpu()});
  return result;
}

BenchProblem plan_bench(const Operator& op, const BenchShape& shape, options::Pairs pairs,
                        std::optional<bool> wanted_causal, bool every_input) {
  BenchProblem problem{&op, shape, std::move(pairs), false, {}, {}};
  const auto causal = std::find_if(op.options.begin(), op.options.end(),
                                   [](const auto& info) { return info.name == "causal"; });
  if (causal != op.options.end()) {
    if (wanted_causal) problem.options.emplace_back("causal", options::print(*wanted_causal));
    options::parse(value_of(*causal, problem.options), op.name + ": option causal", problem.causal);
  } else {
    problem.causal = op.has(Form::causal) || op.has(Form::decode);
  }
  problem.symbols = symbols_of(op, shape, problem.options);
  bool takes_dtype = shape.dtype == DType::f32;
  for (const auto& spec : op.inputs) {
    if (!is_needed(op, spec, every_input)) continue;
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
