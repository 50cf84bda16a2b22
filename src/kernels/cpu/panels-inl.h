// SPDX-License-Identifier: Apache-2.0
// Rows of a strided tensor of any float type as the packed operands of tile-inl.h. Included once per SIMD
// target.
#include "kernels/cpu/tile-inl.h"

#if defined(FOVEA_KERNELS_CPU_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_PANELS_INL_H_
#undef FOVEA_KERNELS_CPU_PANELS_INL_H_
#else
#define FOVEA_KERNELS_CPU_PANELS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// `count` rows of `width` values, `stride` elements apart.
struct Rows {
  const void* data;
  DType dtype;
  int64_t stride, count, width;

  const void* row(int64_t r) const { return static_cast<const char*>(data) + r * stride * size_of(dtype); }
};

/// Floats of one packed panel of `depth` rows.
HWY_INLINE int64_t panel_floats(int64_t depth) { return depth * kPanel; }

/// Packs rows as columns: panels[p][c][n] = rows[p * kPanel + n][c] for c below width rounded up to 4, zeros
/// beside the rows. `panel_stride` floats separate panels; `scratch` has kLanes * round_up(width, 4) floats.
HWY_INLINE void pack_transposed(const Rows& rows, float* panels, int64_t panel_stride, float* scratch) {
  const int64_t depth = round_up(rows.width, 4);
  const bool in_place = rows.dtype == DType::f32 && depth == rows.width;
  for (int64_t first = 0; first < rows.count; first += kLanes) {
    const float* pointers[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      float* copy = scratch + r * depth;
      pointers[r] = copy;
      if (first + r >= rows.count) {
        std::fill(copy, copy + depth, 0.0f);
      } else if (in_place) {
        pointers[r] = static_cast<const float*>(rows.row(first + r));
      } else {
        load_row(rows.row(first + r), rows.dtype, rows.width, 1.0f, copy, rows.width);
        std::fill(copy + rows.width, copy + depth, 0.0f);
      }
    }
    transpose_rows(pointers, depth, panels + first / kPanel * panel_stride + first % kPanel, kPanel);
  }
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
