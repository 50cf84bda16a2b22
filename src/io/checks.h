// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fovea/core/tensor.h"

/// What every reader of a file that someone else wrote needs.
namespace fovea::io {

/// `name` in quotes, fit for a message whatever it holds: bytes that are not printable ASCII become \xNN, and
/// a long name is cut.
std::string quote(std::string_view name);

/// Bytes of a tensor whose `block` values take `block_bytes`; nothing when that overflows or a size is
/// negative.
std::optional<int64_t> byte_count(const Shape& shape, int64_t block_bytes, int64_t block = 1);

}  // namespace fovea::io
