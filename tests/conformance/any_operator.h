// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "cli/bench_problem.h"
#include "fovea/core/catalogue.h"
#include "tests/support/reference.h"

/// Problems for any operator of the catalogue, and what holds of the outputs of all of them.
namespace fovea::conformance {

using cli::BenchShape;

/// Grouped heads, several blocks of every kind, lengths that no block divides. Every operator takes it.
inline constexpr BenchShape kUsual = {
    .batch = 2, .heads_q = 4, .heads_kv = 2, .length_q = 63, .length_k = 65, .dim = 16, .dim_v = 16};

struct Named {
  const char* name;
  BenchShape shape;
};
inline const std::vector<Named>& shapes() {
  static const std::vector<Named> all = {
      {"usual", kUsual},
      {"one token",
       {.batch = 1, .heads_q = 2, .heads_kv = 2, .length_q = 1, .length_k = 1, .dim = 16, .dim_v = 16}},
      {"decode",
       {.batch = 3, .heads_q = 4, .heads_kv = 2, .length_q = 1, .length_k = 100, .dim = 16, .dim_v = 16}},
      {"odd channels",
       {.batch = 1, .heads_q = 6, .heads_kv = 2, .length_q = 100, .length_k = 100, .dim = 20, .dim_v = 13}},
      {"more queries than keys",
       {.batch = 1, .heads_q = 2, .heads_kv = 2, .length_q = 65, .length_k = 63, .dim = 32, .dim_v = 32}},
  };
  return all;
}

/// Defaults fit lengths of thousands; blocks, strides and windows of 16 make short inputs span several.
inline options::Pairs small_options(const Operator& op) {
  constexpr int64_t kSmall = 16;
  options::Pairs pairs;
  for (const auto& info : op.options) {
    if (info.name == "head_group") pairs.emplace_back(info.name, "2");
    if (info.type != "int" || info.limits.choices[0] != '\0' || info.limits.low > 1) continue;
    int64_t value = 0;
    options::parse(info.default_value, info.name, value);
    if (value > kSmall) pairs.emplace_back(info.name, std::to_string(kSmall));
  }
  return pairs;
}

struct Call {
  cli::BenchProblem plan;
  Tensors in;

  const Operator& op() const { return *plan.op; }
  const options::Pairs& options() const { return plan.options; }
  Support support() const { return op().supports(Problem::of(in, options())); }
  Tensors outputs() const { return op().run(in, options()); }
};

inline Call make_call(const Operator& op, const BenchShape& shape, bool every_input = false) {
  Call call{cli::plan_bench(op, shape, small_options(op), {}, every_input), {}};
  call.in = cli::make_inputs(call.plan);
  return call;
}

/// What to set an option of few values to, one at a time: choices, and the other value of a switch.
inline std::vector<std::string> alternatives(const options::Info& info) {
  if (info.type == "bool") return {info.default_value == "true" ? "false" : "true"};
  std::vector<std::string> values;
  std::stringstream choices(info.limits.choices);
  for (std::string value; std::getline(choices, value, ',');)
    if (value != info.default_value) values.push_back(value);
  return values;
}

/// The operator's problems, those of them that it supports: every shape, with and without optional inputs,
/// with both values of `causal`; then the usual shape with the options' defaults, and with each of their
/// choices.
inline std::vector<std::pair<std::string, Call>> all_calls(const Operator& op) {
  std::vector<std::pair<std::string, Call>> calls;
  const auto add = [&](std::string label, const BenchShape& shape, options::Pairs pairs,
                       std::optional<bool> causal, bool every_input) {
    Call call{cli::plan_bench(op, shape, std::move(pairs), causal, every_input), {}};
    if (!op.supports(call.plan.problem()).yes) return;
    call.in = cli::make_inputs(call.plan);
    calls.emplace_back(std::move(label), std::move(call));
  };
  const bool has_causal = options::find(op.options, "causal") != nullptr;
  const bool has_optional =
      std::any_of(op.inputs.begin(), op.inputs.end(), [](const auto& spec) { return spec.optional; });
  for (const auto& [name, shape] : shapes())
    for (const bool every_input : {false, true})
      for (const bool causal : {false, true}) {
        if ((every_input && !has_optional) || (causal && !has_causal)) continue;
        add(std::string(name) + (every_input ? ", every input" : "") + (causal ? ", causal" : ""), shape,
            small_options(op), causal, every_input);
      }
  add("default options", kUsual, {}, {}, true);
  for (const auto& info : op.options)
    for (const auto& value : alternatives(info)) {
      if (info.name == "causal") continue;
      options::Pairs pairs = small_options(op);
      pairs.emplace_back(info.name, value);
      add(info.name + "=" + value, kUsual, pairs, {}, false);
    }
  return calls;
}

/// Shape symbols as the operator itself binds them.
inline Symbols symbols_of(const Call& call) {
  Symbols symbols;
  std::map<std::string, std::string> bound_by;
  for (const auto& info : call.op().options)
    if (info.type == "int") options::parse(cli::option_value(call.plan, info), info.name, symbols[info.name]);
  for (const auto& spec : call.op().inputs)
    if (const Tensor tensor = call.in[spec.name])
      spec.match(tensor.shape(), tensor.dtype(), symbols, bound_by);
  return symbols;
}

/// What the outputs of any operator keep to: the names, shapes and types of its spec; no NaN; infinity only
/// where a row that sees no key says so.
inline void expect_conforming(const Call& call, const Tensors& out) {
  Symbols symbols = symbols_of(call);
  std::map<std::string, std::string> bound_by;
  DType shared = DType::f32;
  for (const auto& spec : call.op().inputs)
    if (spec.shares_type && call.in.contains(spec.name)) shared = call.in[spec.name].dtype();
  size_t specified = 0;
  for (const auto& spec : call.op().outputs) {
    const Tensor tensor = out[spec.name];
    if (!tensor && spec.optional) continue;
    ASSERT_TRUE(tensor.defined()) << "output " << spec.name << " is missing";
    ++specified;
    EXPECT_EQ(spec.match(tensor.shape(), tensor.dtype(), symbols, bound_by), "");
    if (spec.shares_type) {
      EXPECT_EQ(name_of(tensor.dtype()), name_of(shared)) << spec.name;
    }
    if (!is_float(tensor.dtype())) continue;
    const bool may_be_empty = spec.name == "lse" || spec.name == "m";
    const Tensor values = tensor.to(DType::f32).contiguous();
    const float* begin = values.data<float>();
    const auto bad = std::find_if(begin, begin + values.size(), [&](float x) {
      return !(std::isfinite(x) || (may_be_empty && x == -std::numeric_limits<float>::infinity()));
    });
    EXPECT_EQ(bad, begin + values.size())
        << spec.name << " has " << *bad << " at element " << bad - begin << " of " << tensor.describe();
  }
  EXPECT_EQ(specified, out.size()) << "an output that the spec does not name";
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (x.bytes() == 0 || std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())) == 0);
}

inline void expect_same_bits(const Tensors& got, const Tensors& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, tensor] : want)
    EXPECT_TRUE(same_bits(got[name], tensor))
        << name << " " << tensor.describe() << " differs, relative error "
        << (is_float(tensor.dtype()) ? reference::relative_error(got[name], tensor) : -1.0);
}

/// Elements that differ, as a share of all.
inline double differing_share(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  if (!(x.shape() == y.shape()) || x.dtype() != y.dtype()) return 1.0;
  const auto width = static_cast<size_t>(size_of(x.dtype()));
  int64_t count = 0;
  for (size_t i = 0; i < static_cast<size_t>(x.size()); ++i)
    count += std::memcmp(static_cast<const char*>(x.raw()) + i * width,
                         static_cast<const char*>(y.raw()) + i * width, width) != 0;
  return static_cast<double>(count) / static_cast<double>(std::max<int64_t>(1, x.size()));
}

inline double largest_difference(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(DType::f32).contiguous(), y = b.to(DType::f32).contiguous();
  if (!(x.shape() == y.shape())) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (int64_t i = 0; i < x.size(); ++i) {
    const double p = x.data<float>()[i], q = y.data<float>()[i];
    if (p != q) largest = std::isfinite(p - q) ? std::max(largest, std::abs(p - q)) : INFINITY;
  }
  return largest;
}

/// Floats within a relative error of `tolerance`, or nothing but rounding where a result cancels to zero (the
/// gradient of the score of an only key). Of everything else (what was selected, codes), no more than one
/// element in a hundred differs, for scores that tie to within rounding.
inline void expect_near(const Tensors& got, const Tensors& want, double tolerance) {
  constexpr double kRounding = 1e-5, kTies = 0.01;
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, tensor] : want) {
    ASSERT_TRUE(got.contains(name)) << name;
    if (!is_float(tensor.dtype())) {
      EXPECT_LE(differing_share(got[name], tensor), kTies) << name;
    } else if (largest_difference(got[name], tensor) > kRounding) {
      EXPECT_LE(reference::relative_error(got[name], tensor), tolerance) << name;
    }
  }
}

/// One test per operator.
class AnyOperator : public testing::TestWithParam<const Operator*> {
 protected:
  const Operator& op() const { return *GetParam(); }
  Call usual() const { return make_call(op(), kUsual); }
};

inline std::vector<const Operator*> all_operators() {
  std::vector<const Operator*> all;
  for (const auto& op : catalogue().all()) all.push_back(op.get());
  return all;
}

inline std::string test_name(const testing::TestParamInfo<const Operator*>& info) {
  std::string name = info.param->name;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace fovea::conformance

namespace fovea {
inline void PrintTo(const Operator* op, std::ostream* out) { *out << op->name; }
}  // namespace fovea
