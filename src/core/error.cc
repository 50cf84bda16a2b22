// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/error.h"

namespace fovea::detail {

void assertion_failed(const char* condition, const char* file, int line) {
  throw Error(std::string("internal error: ") + condition + " does not hold (" + file + ":" +
                  std::to_string(line) + ")",
              ErrorCode::internal);
}

}  // namespace fovea::detail
