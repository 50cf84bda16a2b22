// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "fovea/core/error.h"

/// Option structs, described once.
///
/// An option struct is an aggregate with defaults and one static function `fields()`. That list drives
/// parsing of `key=value`, validation, `fovea show`, the reference documentation and language bindings. A
/// struct may also have `void validate() const` for rules that span several fields.
///
///     struct QuestOptions {
///       int64_t page_size = 16;
///       static constexpr auto fields() {
///         return options::list(options::field(&QuestOptions::page_size, "page_size", "tokens per page",
///                                             options::at_least(1)));
///       }
///     };
namespace fovea::options {

/// The values a field may take. Numbers: an interval, each end open or closed. Strings: a list of choices.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;
  const char* choices = "";  // "union,first,second"
};

constexpr Range any() { return {}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range above(double low) { return {.low = low, .low_open = true}; }
constexpr Range between(double low, double high) { return {.low = low, .high = high}; }
/// (low, high]
constexpr Range above_up_to(double low, double high) { return {.low = low, .high = high, .low_open = true}; }
/// A comma-separated list of the permitted strings or integers.
constexpr Range one_of(const char* choices) { return {.choices = choices}; }

template <typename Struct, typename Value>
struct Field {
  Value Struct::*member;
  const char* name;
  const char* help;
  Range range;
  const char* short_name = "";  // a second spelling accepted in recipes and --set

  constexpr Field alias(const char* other) const {
    Field copy = *this;
    copy.short_name = other;
    return copy;
  }
};

template <typename Struct, typename Value>
constexpr auto field(Value Struct::*member, const char* name, const char* help, Range range = any()) {
  return Field<Struct, Value>{member, name, help, range};
}

template <typename... Fields>
constexpr auto list(Fields... fields) {
  return std::make_tuple(fields...);
}

/// One field as a user sees it.
struct Info {
  std::string name, alias, help;
  std::string type;           ///< bool, int, float, str, or list of int / float
  std::string default_value;  ///< as it would be typed
  std::string range;          ///< ">= 1", "0 .. 1", "union, first, second", or empty
  Range limits;               ///< what `range` prints
};

/// key=value pairs in the order given.
using Pairs = std::vector<std::pair<std::string, std::string>>;

// Text conversion of every supported type. `what` names the option in errors.
void parse(std::string_view text, std::string_view what, bool& value);
void parse(std::string_view text, std::string_view what, int64_t& value);
void parse(std::string_view text, std::string_view what, int& value);
void parse(std::string_view text, std::string_view what, double& value);
void parse(std::string_view text, std::string_view what, float& value);
void parse(std::string_view text, std::string_view what, std::string& value);
void parse(std::string_view text, std::string_view what, std::vector<int64_t>& value);
void parse(std::string_view text, std::string_view what, std::vector<double>& value);

std::string print(bool value);
std::string print(int64_t value);
std::string print(double value);
std::string print(float value);
std::string print(const std::string& value);
std::string print(const std::vector<int64_t>& value);
std::string print(const std::vector<double>& value);
inline std::string print(int value) { return print(int64_t{value}); }

void check(double value, std::string_view what, const Range& range);
void check(const std::string& value, std::string_view what, const Range& range);
std::string to_string(const Range& range);
[[noreturn]] void unknown(std::string_view owner, std::string_view key, const std::vector<Info>& known);

namespace detail {

template <typename Value>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<Value, bool>)
    return "bool";
  else if constexpr (std::is_integral_v<Value>)
    return "int";
  else if constexpr (std::is_floating_point_v<Value>)
    return "float";
  else if constexpr (std::is_same_v<Value, std::string>)
    return "str";
  else if constexpr (std::is_same_v<Value, std::vector<int64_t>>)
    return "list of int";
  else
    return "list of float";
}

template <typename Value>
void check_value(const Value& value, std::string_view what, const Range& range) {
  if constexpr (std::is_same_v<Value, bool>)
    return;
  else if constexpr (std::is_arithmetic_v<Value>)
    check(static_cast<double>(value), what, range);
  else if constexpr (std::is_same_v<Value, std::string>)
    check(value, what, range);
  else
    for (const auto& item : value) check(static_cast<double>(item), what, range);
}

}  // namespace detail

/// An empty option struct, for operators that have none.
struct None {
  static constexpr auto fields() { return list(); }
};

/// All fields of T with their defaults.
template <typename T>
std::vector<Info> describe() {
  std::vector<Info> result;
  const T defaults{};
  std::apply(
      [&](const auto&... field) {
        (result.push_back({field.name, field.short_name, field.help,
                           detail::type_name<std::remove_cvref_t<decltype(defaults.*field.member)>>(),
                           print(defaults.*field.member), to_string(field.range), field.range}),
         ...);
      },
      T::fields());
  return result;
}

/// Throws unless every field is in its range and the struct's own `validate` agrees. `owner` names the
/// operator.
template <typename T>
void validate(const T& value, std::string_view owner) {
  std::apply(
      [&](const auto&... field) {
        (detail::check_value(value.*field.member, std::string(owner) + ": option " + field.name, field.range),
         ...);
      },
      T::fields());
  if constexpr (requires { value.validate(); }) {
    try {
      value.validate();
    } catch (const Error& error) {
      throw Error(std::string(owner) + ": " + error.what());
    }
  }
}

/// Sets the fields named by `pairs` on top of `value` and validates the result.
template <typename T>
void apply(const Pairs& pairs, std::string_view owner, T& value) {
  for (const auto& pair : pairs) {
    // Names of their own: a lambda may not capture structured bindings for every compiler we support.
    const std::string& key = pair.first;
    const std::string& text = pair.second;
    bool found = false;
    std::apply(
        [&](const auto&... field) {
          ((key == field.name || (field.short_name[0] != '\0' && key == field.short_name)
                ? (parse(text, std::string(owner) + ": option " + field.name, value.*field.member),
                   found = true)
                : false),
           ...);
        },
        T::fields());
    if (!found) unknown(owner, key, describe<T>());
  }
  validate(value, owner);
}

template <typename T>
T from_pairs(const Pairs& pairs, std::string_view owner) {
  T value{};
  apply(pairs, owner, value);
  return value;
}

/// The fields that differ from their defaults (or all of them), in declaration order.
template <typename T>
Pairs to_pairs(const T& value, bool all = false) {
  Pairs result;
  const T defaults{};
  std::apply(
      [&](const auto&... field) {
        ((all || !(value.*field.member == defaults.*field.member)
              ? result.emplace_back(field.name, print(value.*field.member))
              : result.emplace_back()),
         ...);
      },
      T::fields());
  std::erase_if(result, [](const auto& pair) { return pair.first.empty(); });
  return result;
}

/// The field that `key` names or abbreviates, nullptr when there is none.
const Info* find(const std::vector<Info>& fields, std::string_view key);
/// `text` as a value of the described field, checked and printed the way its default is. `what` names the
/// option in errors.
std::string canonical(const Info& field, std::string_view text, std::string_view what);

/// Splits "key=value"; throws when there is no '='.
std::pair<std::string, std::string> split_pair(std::string_view text);

}  // namespace fovea::options
