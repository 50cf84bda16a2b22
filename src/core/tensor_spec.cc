// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/tensor_spec.h"

#include <algorithm>
#include <cctype>

namespace fovea {
namespace {

// Recursive descent over: sum := product (('+'|'-') product)*, product := atom (('*'|'/') atom)*,
// atom := number | symbol | function '(' sum [',' sum] ')' | '(' sum ')'.
class Expression {
 public:
  Expression(std::string_view text, const Symbols& symbols) : text_(text), symbols_(symbols) {}

  std::optional<int64_t> value() {
    const auto result = sum();
    if (at_ != text_.size()) fail();
    return result;
  }

 private:
  using Value = std::optional<int64_t>;

  [[noreturn]] void fail() const {
    throw Error(
        "malformed shape expression '" + std::string(text_) + "' at character " + std::to_string(at_ + 1),
        ErrorCode::internal);
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void expect(char c) {
    if (peek() != c) fail();
    ++at_;
  }

  Value sum() {
    Value left = product();
    while (peek() == '+' || peek() == '-') {
      const char op = text_[at_++];
      const Value right = product();
      if (left && right)
        left = op == '+' ? *left + *right : *left - *right;
      else
        left.reset();
    }
    return left;
  }

  Value product() {
    Value left = atom();
    while (peek() == '*' || peek() == '/') {
      const char op = text_[at_++];
      const Value right = atom();
      if (!left || !right || (op == '/' && *right == 0)) {
        left.reset();
        continue;
      }
      exact_ = exact_ && (op == '*' || *left % *right == 0);
      left = op == '*' ? *left * *right : *left / *right;
    }
    return left;
  }

  Value atom() {
    if (peek() == '(') {
      ++at_;
      const Value inside = sum();
      expect(')');
      return inside;
    }
    const size_t start = at_;
    while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '_') ++at_;
    if (at_ == start) fail();
    const std::string_view word = text_.substr(start, at_ - start);
    if (std::isdigit(static_cast<unsigned char>(word[0]))) return std::stoll(std::string(word));
    if (peek() == '(') return function(word);
    const auto found = symbols_.find(word);
    return found == symbols_.end() ? Value() : Value(found->second);
  }

  Value function(std::string_view name) {
    expect('(');
    exact_ = true;
    Value first = sum();
    if (name == "ceil") {
      if (first && !exact_) ++*first;
      expect(')');
      return first;
    }
    expect(',');
    const Value second = sum();
    expect(')');
    if (!first || !second) return {};
    if (name == "min") return std::min(*first, *second);
    if (name == "max") return std::max(*first, *second);
    fail();
  }

  std::string_view text_;
  const Symbols& symbols_;
  size_t at_ = 0;
  bool exact_ = true;  // no division since the last '(' of a function left a remainder
};

bool is_symbol(std::string_view axis) {
  return !axis.empty() && std::isalpha(static_cast<unsigned char>(axis[0])) &&
         std::all_of(axis.begin(), axis.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

// Splits at commas outside parentheses.
std::vector<std::string> split_axes(std::string_view text) {
  std::vector<std::string> axes;
  std::string axis;
  int depth = 0;
  for (char c : text) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == ',' && depth == 0) {
      axes.push_back(axis);
      axis.clear();
    } else if (c != ' ') {
      axis += c;
    }
  }
  if (!axis.empty() || !axes.empty()) axes.push_back(axis);
  return axes;
}

}  // namespace

std::optional<int64_t> evaluate(std::string_view expression, const Symbols& symbols) {
  return Expression(expression, symbols).value();
}

TensorSpec TensorSpec::parse(std::string_view text) {
  const size_t open = text.find('['), close = text.rfind(']');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open || open < 2)
    throw Error("malformed tensor spec '" + std::string(text) + "'", ErrorCode::internal);
  TensorSpec spec;
  spec.text = std::string(text);
  spec.name = std::string(text.substr(0, text.find_first_of("? [")));
  spec.optional = text.substr(0, open).find('?') != std::string_view::npos;
  spec.axes = split_axes(text.substr(open + 1, close - open - 1));
  if (!spec.axes.empty() && spec.axes.front() == "...") {
    spec.any_leading = true;
    spec.axes.erase(spec.axes.begin());
  }
  std::string types(text.substr(close + 1));
  std::erase(types, ' ');
  if (types.empty()) types = "f32";
  spec.shares_type = types == "float";
  if (spec.shares_type) types = "f32|f16|bf16";
  for (size_t start = 0; start <= types.size();) {
    const size_t end = std::min(types.find('|', start), types.size());
    const auto dtype = parse_dtype(std::string_view(types).substr(start, end - start));
    if (!dtype) throw Error("unknown type in tensor spec '" + std::string(text) + "'", ErrorCode::internal);
    spec.dtypes.push_back(*dtype);
    start = end + 1;
  }
  return spec;
}

std::string TensorSpec::shape_text() const {
  std::string result = any_leading ? "[..." : "[";
  for (size_t i = 0; i < axes.size(); ++i) result += (i || any_leading ? "," : "") + axes[i];
  return result + "]";
}

std::string TensorSpec::dtype_text() const {
  std::string result;
  for (DType dtype : dtypes) result += (result.empty() ? "" : "|") + std::string(name_of(dtype));
  return result;
}

std::string TensorSpec::match(const Shape& shape, DType dtype, Symbols& symbols,
                              std::map<std::string, std::string>& bound_by) const {
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
    return name + " is " + std::string(name_of(dtype)) + ", expected " + dtype_text();
  const int wanted = static_cast<int>(axes.size());
  if (any_leading ? shape.rank() < wanted : shape.rank() != wanted)
    return name + " has shape " + shape.to_string() + ", expected " + shape_text();
  for (int i = 0; i < wanted; ++i) {
    const int axis = shape.rank() - wanted + i;
    const int64_t size = shape[axis];
    std::string_view rule = axes[static_cast<size_t>(i)];
    if (rule.starts_with("1|")) {
      if (size == 1) continue;
      rule.remove_prefix(2);
    }
    const std::string rule_text(rule);
    const auto value = evaluate(rule, symbols);
    if (!value) {
      if (!is_symbol(rule)) continue;  // some symbol is not bound by any tensor: nothing to compare with
      if (size == 0 && rule[0] != 'B' && rule[0] != 'T' && rule[0] != 'N')
        return name + " has shape " + shape.to_string() + ": axis " + std::to_string(axis) + " (" +
               rule_text + ") may not be empty";
      symbols.emplace(rule_text, size);
      bound_by.emplace(rule_text, name);
    } else if (*value != size) {
      const auto source = bound_by.find(rule_text);
      return name + " has shape " + shape.to_string() + ": axis " + std::to_string(axis) + " (" + rule_text +
             ") is " + std::to_string(size) + ", expected " + std::to_string(*value) +
             (source == bound_by.end() ? "" : " as in " + source->second);
    }
  }
  return "";
}

}  // namespace fovea
