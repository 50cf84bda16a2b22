// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/operator.h"

#include <algorithm>
#include <cmath>

namespace fovea {
namespace {

Symbols option_symbols(const std::vector<options::Info>& infos, const options::Pairs& pairs) {
  Symbols symbols;
  for (const auto& info : infos) {
    if (info.type != "int") continue;
    std::string text = info.default_value;
    for (const auto& [key, value] : pairs)
      if (key == info.name || key == info.alias) text = value;
    options::parse(text, info.name, symbols[info.name]);
  }
  return symbols;
}

bool any_non_finite(const Tensor& tensor) {
  const Tensor flat = tensor.to(DType::f32).contiguous();
  return std::any_of(flat.data<float>(), flat.data<float>() + flat.size(),
                     [](float x) { return !std::isfinite(x); });
}

}  // namespace

std::string_view name_of(Room room) {
  static constexpr std::string_view kNames[] = {"kernels",   "dense",       "sparse", "linear",
                                                "cache",     "distributed", "nn",     "model",
                                                "inference", "analysis",    "study"};
  return kNames[static_cast<size_t>(room)];
}

std::string_view name_of(Form form) {
  static constexpr std::string_view kNames[] = {"forward", "backward", "decode", "causal", "grouped", "plan"};
  return kNames[static_cast<size_t>(form)];
}

Tensor Tensors::operator[](std::string_view name) const {
  for (const auto& [key, tensor] : items_)
    if (key == name) return tensor;
  return {};
}

bool Tensors::contains(std::string_view name) const { return (*this)[name].defined(); }

void Tensors::set(std::string name, Tensor tensor) {
  for (auto& item : items_) {
    if (item.first != name) continue;
    item.second = std::move(tensor);
    return;
  }
  items_.emplace_back(std::move(name), std::move(tensor));
}

Problem Problem::of(const Tensors& inputs, const options::Pairs& options) {
  Problem problem{{}, options};
  for (const auto& [name, tensor] : inputs)
    problem.inputs.push_back({name, tensor.shape(), tensor.dtype(), tensor.device()});
  return problem;
}

bool Operator::has(Form form) const { return std::find(forms.begin(), forms.end(), form) != forms.end(); }

Support Operator::supports(const Problem& problem) const {
  auto no = [&](const std::string& reason) { return Support{false, name + ": " + reason}; };
  try {
    check_options_(problem.options);
  } catch (const Error& error) {
    return {false, error.what()};
  }
  for (const auto& input : problem.inputs) {
    const bool known =
        std::any_of(inputs.begin(), inputs.end(), [&](const auto& spec) { return spec.name == input.name; });
    if (!known) {
      std::string names;
      for (const auto& spec : inputs) names += (names.empty() ? "" : ", ") + spec.name;
      return no("unexpected input tensor '" + input.name +
                (names.empty() ? "'; it takes none" : "'; it takes " + names));
    }
    if (std::find(devices.begin(), devices.end(), input.device.type) == devices.end())
      return no("does not run on " + input.device.name());
  }
  Symbols symbols = option_symbols(options, problem.options);
  std::map<std::string, std::string> bound_by;
  const Problem::Input* typed = nullptr;
  for (const auto& spec : inputs) {
    const auto found = std::find_if(problem.inputs.begin(), problem.inputs.end(),
                                    [&](const auto& input) { return input.name == spec.name; });
    if (found == problem.inputs.end()) {
      if (!spec.optional) return no("input tensor '" + spec.name + "' " + spec.shape_text() + " is missing");
      continue;
    }
    const std::string wrong = spec.match(found->shape, found->dtype, symbols, bound_by);
    if (!wrong.empty()) return no(wrong);
    if (!spec.shares_type) continue;
    if (typed != nullptr && typed->dtype != found->dtype)
      return no(found->name + " is " + std::string(name_of(found->dtype)) + " where " + typed->name + " is " +
                std::string(name_of(typed->dtype)) + ": they must agree");
    typed = &*found;
  }
  for (const auto& rule : rules_) {
    const std::string wrong = rule(symbols, problem.options);
    if (!wrong.empty()) return no(wrong);
  }
  return {};
}

Tensors Operator::run(const Tensors& given, const options::Pairs& pairs) const {
  const Support support = supports(Problem::of(given, pairs));
  if (!support.yes) throw Error(support.reason);
  if (nonfinite == NonFinite::refuse) {
    for (const auto& [key, tensor] : given)
      if (is_float(tensor.dtype()) && any_non_finite(tensor))
        throw Error(name + ": " + key + " contains NaN or infinity, which this operator refuses");
  }
  return runner_(given, pairs);
}

}  // namespace fovea
