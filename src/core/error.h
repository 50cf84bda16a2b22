// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace fovea {

/// What kind of trouble an Error reports. The command line maps the first three to exit status 2, the rest
/// to 1.
enum class ErrorCode {
  invalid_argument,  ///< a tensor, option, recipe or file content is unusable
  not_found,         ///< no such operator, option, file
  io,                ///< the file system refused
  unsupported,       ///< valid, but not built or not available here
  internal           ///< a defect of Fovea itself
};

/// The one exception type of the library. The message is one sentence that names the operator, the tensor or
/// option, what was expected and what came.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ErrorCode code = ErrorCode::invalid_argument)
      : std::runtime_error(message), code_(code) {}

  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

namespace detail {
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);
}  // namespace detail

/// Throws Error(invalid_argument) with the parts (text, numbers, tensors, shapes) unless
/// `condition` holds. The message is only built on failure.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::string message;
  auto add = [&](const auto& part) {
    if constexpr (std::is_convertible_v<decltype(part), std::string_view>)
      message += std::string_view(part);
    else if constexpr (requires { part.describe(); })
      message += part.describe();
    else if constexpr (requires { part.to_string(); })
      message += part.to_string();
    else
      message += std::to_string(part);
  };
  (add(parts), ...);
  throw Error(message);
}

}  // namespace fovea

/// A check of Fovea's own invariants; throws Error(internal).
#define FOVEA_ASSERT(condition) \
  (static_cast<bool>(condition) ? void(0) : ::fovea::detail::assertion_failed(#condition, __FILE__, __LINE__))
