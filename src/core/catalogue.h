// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/operator.h"

namespace fovea {

/// Fluent description of one operator; see Catalogue::add.
class OperatorBuilder {
 public:
  explicit OperatorBuilder(Operator& op) : op_(op) {}

  OperatorBuilder& summary(std::string text);
  OperatorBuilder& inputs(std::initializer_list<const char*> specs);
  OperatorBuilder& outputs(std::initializer_list<const char*> specs);
  /// Forms in addition to `forward`.
  OperatorBuilder& forms(std::initializer_list<Form> forms);
  OperatorBuilder& on(std::initializer_list<Device::Type> devices);
  OperatorBuilder& refuses_non_finite();
  /// Symbol `a` must be a positive multiple of symbol `b`.
  OperatorBuilder& requires_multiple(std::string a, std::string b);
  OperatorBuilder& requires_power_of_two(std::string symbol);

 protected:
  void set_runner(Operator::Runner runner) { op_.runner_ = std::move(runner); }
  void set_option_check(std::function<void(const options::Pairs&)> check) {
    op_.check_options_ = std::move(check);
  }
  void add_rule(Operator::Rule rule) { op_.rules_.push_back(std::move(rule)); }
  Operator& op_;
};

/// The typed end of the builder. Options is the operator's option struct.
template <typename Options>
class TypedBuilder : public OperatorBuilder {
 public:
  explicit TypedBuilder(Operator& op) : OperatorBuilder(op) {
    op.options = options::describe<Options>();
    set_option_check(
        [owner = op.name](const options::Pairs& pairs) { options::from_pairs<Options>(pairs, owner); });
  }

  // The chain keeps its typed end.
  TypedBuilder& summary(std::string text) { return OperatorBuilder::summary(std::move(text)), *this; }
  TypedBuilder& inputs(std::initializer_list<const char*> s) { return OperatorBuilder::inputs(s), *this; }
  TypedBuilder& outputs(std::initializer_list<const char*> s) { return OperatorBuilder::outputs(s), *this; }
  TypedBuilder& forms(std::initializer_list<Form> f) { return OperatorBuilder::forms(f), *this; }
  TypedBuilder& on(std::initializer_list<Device::Type> d) { return OperatorBuilder::on(d), *this; }
  TypedBuilder& refuses_non_finite() { return OperatorBuilder::refuses_non_finite(), *this; }
  TypedBuilder& requires_multiple(std::string a, std::string b) {
    return OperatorBuilder::requires_multiple(std::move(a), std::move(b)), *this;
  }
  TypedBuilder& requires_power_of_two(std::string s) {
    return OperatorBuilder::requires_power_of_two(std::move(s)), *this;
  }
  /// rule(symbols, options) returns what is wrong, or an empty string.
  template <typename Rule>
  TypedBuilder& requires_that(Rule rule) {
    add_rule([rule, owner = op_.name](const Symbols& symbols, const options::Pairs& pairs) -> std::string {
      return rule(symbols, options::from_pairs<Options>(pairs, owner));
    });
    return *this;
  }
  /// run(const Tensors& in, const Options& options) -> Tensors; inputs are already validated.
  template <typename Run>
  void runs(Run run) {
    set_runner([run, owner = op_.name](const Tensors& in, const options::Pairs& pairs) -> Tensors {
      return run(in, options::from_pairs<Options>(pairs, owner));
    });
  }
};

/// All operators, by name.
class Catalogue {
 public:
  /// Begins the description of an operator of paper `paper` (its card number). Names are unique.
  template <typename Options>
  TypedBuilder<Options> add(std::string name, Room room, int paper) {
    return TypedBuilder<Options>(emplace(std::move(name), room, paper));
  }

  /// In the order of registration.
  const std::vector<std::unique_ptr<Operator>>& all() const { return operators_; }
  const Operator* find(std::string_view name) const;
  /// Throws Error(not_found), with the nearest name as a suggestion.
  const Operator& at(std::string_view name) const;

 private:
  Operator& emplace(std::string name, Room room, int paper);
  std::vector<std::unique_ptr<Operator>> operators_;
};

/// The catalogue of everything built in.
const Catalogue& catalogue();

/// The candidate nearest to `name` in edit distance, or an empty string when none is near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace fovea
