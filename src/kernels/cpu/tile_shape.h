// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace fovea::kernels::cpu {

/// Rows of an AMX tile of 64 bytes each: 16 floats, or 16 pairs of bf16.
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTilePairs = 16;

/// The operand of LDTILECFG. Its intrinsic tells the compiler of the first eight bytes only: keep the whole
/// alive by an asm statement before it.
struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  /// All eight tiles at their full size.
  TileShape() {
    for (int i = 0; i < 8; ++i) row_bytes[i] = 64, rows[i] = kTileRows;
  }
};
static_assert(sizeof(TileShape) == 64);

}  // namespace fovea::kernels::cpu
