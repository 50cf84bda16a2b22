// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace fovea::cli {

inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;    ///< something went wrong while running
inline constexpr int kUnusable = 2;  ///< the arguments or the input cannot be used

/// Trouble that is not the input's fault: a full disk, a closed pipe.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Prints `fovea: error: message` to stderr. Lines after the first (a recipe with its caret) keep their form.
void print_error(const std::string& message);

/// Prints the exception and returns the exit status it stands for.
int report(const std::exception& error);

}  // namespace fovea::cli
