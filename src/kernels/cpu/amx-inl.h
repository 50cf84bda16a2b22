// SPDX-License-Identifier: Apache-2.0
// Products of bf16 pairs by AMX tiles. Included once per SIMD target, and empty like bfloat16-inl.h.
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/tile_shape.h"

#if defined(FOVEA_KERNELS_CPU_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_AMX_INL_H_
#undef FOVEA_KERNELS_CPU_AMX_INL_H_
#else
#define FOVEA_KERNELS_CPU_AMX_INL_H_
#endif

#if FOVEA_PAIR_PRODUCTS

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

#undef FOVEA_AMX
#define FOVEA_AMX __attribute__((target(HWY_TARGET_STR ",amx-tile,amx-bf16")))

using cpu::kTilePairs;
using cpu::kTileRows;

/// While one lives, its thread's tile registers are usable: eight of 16 rows of 64 bytes.
class TileRegisters {
 public:
  FOVEA_AMX TileRegisters() {
    const cpu::TileShape shape;
    asm volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  FOVEA_AMX ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

/// A product whose A has its rows readable, and C writable, up to a multiple of kTileRows; depth is a
/// multiple of kTilePairs, a_depth is 1.
struct TileProduct : PairProduct {};

/// kRows x kColumns accumulators (1 or 2 each) over the whole depth: tiles 0..3 hold C, 4 and 5 A, 6 and 7 B.
template <int kRows, int kColumns>
FOVEA_AMX HWY_NOINLINE void multiply_tiles(const TileProduct& p, int64_t row) {
  float* c = p.c + row * p.c_stride;
  float* c_below = c + kTileRows * p.c_stride;
  const int64_t a_bytes = p.a_row * 4, b_bytes = p.b_stride * 4, c_bytes = p.c_stride * 4;
  // The intrinsics do not tell the compiler what memory they touch.
  asm volatile("" ::: "memory");
  if (p.accumulate) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kColumns == 2) _tile_loadd(1, c + kLanes, c_bytes);
    if constexpr (kRows == 2) _tile_loadd(2, c_below, c_bytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, c_below + kLanes, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  }
  const Pair* a = p.a + row * p.a_row;
  const Pair* b = p.b;
  for (int64_t k = 0; k < p.depth; k += kTilePairs, a += kTilePairs, b += kTilePairs * p.b_stride) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b, b_bytes);
    if constexpr (kColumns == 2) _tile_loadd(7, b + kLanes, b_bytes);
    if constexpr (kRows == 2) _tile_loadd(5, a + kTileRows * p.a_row, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRows == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kRows == 2 && kColumns == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kColumns == 2) _tile_stored(1, c + kLanes, c_bytes);
  if constexpr (kRows == 2) _tile_stored(2, c_below, c_bytes);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, c_below + kLanes, c_bytes);
  asm volatile("" ::: "memory");
}

template <int kColumns>
void multiply_tile_rows(const TileProduct& p) {
  int64_t row = 0;
  for (; row + kTileRows < p.rows; row += 2 * kTileRows) multiply_tiles<2, kColumns>(p, row);
  if (row < p.rows) multiply_tiles<1, kColumns>(p, row);
}

/// `columns` is a multiple of kLanes.
inline void multiply(TileProduct p, int64_t columns) {
  for (; columns >= 2 * kLanes; columns -= 2 * kLanes, p.b += 2 * kLanes, p.c += 2 * kLanes)
    multiply_tile_rows<2>(p);
  if (columns > 0) multiply_tile_rows<1>(p);
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_PAIR_PRODUCTS

#endif  // per-target include guard
