// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace fovea::io {

/// `name` in quotes, fit for a message whatever it holds: bytes that are not printable ASCII become \xNN, and
/// a long name is cut.
std::string quote(std::string_view name);

}  // namespace fovea::io
