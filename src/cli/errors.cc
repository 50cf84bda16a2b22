// SPDX-License-Identifier: Apache-2.0
#include "cli/errors.h"

#include <iostream>
#include <new>

#include "fovea/core/error.h"

namespace fovea::cli {

void print_error(const std::string& message) {
  std::string line = message.substr(0, message.find_last_not_of(" \n") + 1);
  for (char& c : line)
    if (c == '\r') c = ' ';
  std::cout.flush();
  std::cerr << "fovea: error: " << line << std::endl;
}

int report(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    print_error("not enough memory");
    return kFailed;
  }
  print_error(error.what());
  const auto* own = dynamic_cast<const Error*>(&error);
  if (own == nullptr) return kFailed;
  switch (own->code()) {
    case ErrorCode::invalid_argument:
    case ErrorCode::not_found:
    case ErrorCode::io:
      return kUnusable;
    default:
      return kFailed;
  }
}

}  // namespace fovea::cli
