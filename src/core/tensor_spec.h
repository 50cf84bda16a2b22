// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/tensor.h"

namespace fovea {

/// Values of shape symbols (B, Hq, T, ...) and of integer options that shapes may mention.
using Symbols = std::map<std::string, int64_t, std::less<>>;

/// The value of an arithmetic expression over symbols ("Hkv*D", "n+1", "ceil(T/block)"), or nothing when a
/// symbol has no value yet. Operators: + - * / (floor), ceil(a/b), min(a,b), max(a,b), parentheses. Throws on
/// a malformed text.
std::optional<int64_t> evaluate(std::string_view expression, const Symbols& symbols);

/// What an operator expects of one tensor: name, axes, types. Written as one line:
///
///     "q [B,Hq,Tq,D] float"        one of f32, f16, bf16; all inputs marked so must agree
///     "cu_q [n+1] i32"             an expression, checked once its symbols are known
///     "bias? [1|B,1|Hq,Tq,Tk]"     optional, with axes that may be 1 (broadcast)
///     "x [...,D]"                  any leading axes
///     "k [B,Hkv,Tk,D]"             no type: f32
struct TensorSpec {
  std::string name;
  std::vector<std::string> axes;
  bool any_leading = false;
  bool optional = false;
  bool shares_type = false;  // marked `float`
  std::vector<DType> dtypes;
  std::string text;  // as written

  static TensorSpec parse(std::string_view text);
  /// "[B,Hq,Tq,D]"
  std::string shape_text() const;
  /// "f32|f16|bf16"
  std::string dtype_text() const;

  /// Checks shape and type of a tensor, and binds symbols that are seen for the first time (`bound_by`
  /// remembers which tensor did). Returns what is wrong, or an empty string.
  std::string match(const Shape& shape, DType dtype, Symbols& symbols,
                    std::map<std::string, std::string>& bound_by) const;
};

}  // namespace fovea
