// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace fovea::options {
namespace {

[[noreturn]] void bad(std::string_view what, std::string_view expected, std::string_view text) {
  throw Error(std::string(what) + " expects " + std::string(expected) + ", got '" + std::string(text) + "'");
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  for (size_t start = 0;;) {
    const size_t end = text.find(separator, start);
    parts.emplace_back(text.substr(start, end - start));
    if (end == std::string_view::npos) return parts;
    start = end + 1;
  }
}

template <typename Value>
void parse_number(std::string_view text, std::string_view what, std::string_view expected, Value& value) {
  const char* end = text.data() + text.size();
  const char* begin = text.data();
  if (begin != end && *begin == '+') ++begin;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || stop != end || begin == end) bad(what, expected, text);
}

template <typename Value>
void parse_list(std::string_view text, std::string_view what, std::vector<Value>& value) {
  value.clear();
  for (const auto& item : split(text, ',')) {
    Value parsed{};
    parse(item, what, parsed);
    value.push_back(parsed);
  }
}

template <typename Value>
std::string print_list(const std::vector<Value>& value) {
  std::string text;
  for (size_t i = 0; i < value.size(); ++i) text += (i ? "," : "") + print(value[i]);
  return text;
}

template <typename Value>
std::string shortest(Value value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return {buffer, result.ptr};
}

template <typename Value>
std::string checked(const Info& field, std::string_view text, std::string_view what) {
  Value value{};
  parse(text, what, value);
  detail::check_value(value, what, field.limits);
  return print(value);
}

std::string print_bound(double value) { return print(value); }

}  // namespace

void parse(std::string_view text, std::string_view what, bool& value) {
  if (text == "true" || text == "1")
    value = true;
  else if (text == "false" || text == "0")
    value = false;
  else
    bad(what, "true or false", text);
}

void parse(std::string_view text, std::string_view what, int64_t& value) {
  parse_number(text, what, "an integer", value);
}
void parse(std::string_view text, std::string_view what, int& value) {
  parse_number(text, what, "an integer", value);
}
void parse(std::string_view text, std::string_view what, double& value) {
  parse_number(text, what, "a number", value);
  if (std::isnan(value)) bad(what, "a number", text);
}
void parse(std::string_view text, std::string_view what, float& value) {
  double wide = 0;
  parse(text, what, wide);
  value = static_cast<float>(wide);
}
void parse(std::string_view text, std::string_view, std::string& value) { value = std::string(text); }
void parse(std::string_view text, std::string_view what, std::vector<int64_t>& value) {
  parse_list(text, what, value);
}
void parse(std::string_view text, std::string_view what, std::vector<double>& value) {
  parse_list(text, what, value);
}

std::string print(bool value) { return value ? "true" : "false"; }
std::string print(int64_t value) { return std::to_string(value); }
std::string print(double value) { return shortest(value); }
std::string print(float value) { return shortest(value); }
std::string print(const std::string& value) { return value; }
std::string print(const std::vector<int64_t>& value) { return print_list(value); }
std::string print(const std::vector<double>& value) { return print_list(value); }

std::string to_string(const Range& range) {
  if (range.choices[0] != '\0') {
    std::string text;
    for (const auto& choice : split(range.choices, ',')) text += (text.empty() ? "" : ", ") + choice;
    return text;
  }
  const bool low = std::isfinite(range.low), high = std::isfinite(range.high);
  if (low && high)
    return (range.low_open ? "(" : "[") + print_bound(range.low) + ", " + print_bound(range.high) +
           (range.high_open ? ")" : "]");
  if (low) return (range.low_open ? "> " : ">= ") + print_bound(range.low);
  if (high) return (range.high_open ? "< " : "<= ") + print_bound(range.high);
  return "";
}

void check(double value, std::string_view what, const Range& range) {
  if (range.choices[0] != '\0') return check(print(value), what, range);
  const bool low = range.low_open ? value > range.low : value >= range.low;
  const bool high = range.high_open ? value < range.high : value <= range.high;
  if (!(low && high))
    throw Error(std::string(what) + " = " + print(value) + " is outside its range " + to_string(range));
}

void check(const std::string& value, std::string_view what, const Range& range) {
  if (range.choices[0] == '\0') return;
  const auto choices = split(range.choices, ',');
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    throw Error(std::string(what) + " = '" + value + "' is not one of " + to_string(range));
}

void unknown(std::string_view owner, std::string_view key, const std::vector<Info>& known) {
  std::string names;
  for (const auto& info : known) names += (names.empty() ? "" : ", ") + info.name;
  throw Error(std::string(owner) + ": unknown option '" + std::string(key) +
              (names.empty() ? "'; it has no options" : "'; it has: " + names));
}

const Info* find(const std::vector<Info>& fields, std::string_view key) {
  const auto found = std::find_if(fields.begin(), fields.end(), [&](const Info& field) {
    return field.name == key || (!field.alias.empty() && field.alias == key);
  });
  return found == fields.end() ? nullptr : &*found;
}

std::string canonical(const Info& field, std::string_view text, std::string_view what) {
  if (field.type == detail::type_name<bool>()) return checked<bool>(field, text, what);
  if (field.type == detail::type_name<int64_t>()) return checked<int64_t>(field, text, what);
  if (field.type == detail::type_name<double>()) return checked<double>(field, text, what);
  if (field.type == detail::type_name<std::vector<int64_t>>())
    return checked<std::vector<int64_t>>(field, text, what);
  if (field.type == detail::type_name<std::vector<double>>())
    return checked<std::vector<double>>(field, text, what);
  return checked<std::string>(field, text, what);
}

std::pair<std::string, std::string> split_pair(std::string_view text) {
  const size_t equals = text.find('=');
  require(equals != std::string_view::npos && equals > 0, "expected key=value, got '", text, "'");
  return {std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))};
}

}  // namespace fovea::options
