// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Weights laid out for the register: panels of 16 rows, so that one 64-byte vector holds the next few
/// columns of 16 rows and a product reads the panel once, front to back. Rows are padded to whole panels with
/// zeros.
///
/// Every function here computes the panels [panel_begin, panel_end) of y = x W^T. An element of y is the same
/// bit for bit whatever the range, the number of rows of x and the number of threads.
namespace fovea::kernels::cpu {

inline constexpr int64_t kPanelRows = 16;

inline int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

/// Where results go: y[row * stride + column], columns [0, rows of the weight).
struct Output {
  float* data;
  int64_t stride;
  int64_t columns;
  bool accumulate = false;
};

/// f32: panel p holds at [k][lane] the weight of row 16 p + lane, column k.
struct FloatPanels {
  const float* data;
  int64_t columns;
};
void multiply_float(const FloatPanels& panels, int64_t panel_begin, int64_t panel_end, const float* x,
                    int64_t x_stride, int64_t x_rows, const Output& y);
/// Lays rows [16 panel, 16 panel + 16) of w (strides in elements, `rows` in all) out as one panel.
void pack_float_panel(const float* w, int64_t row_stride, int64_t column_stride, int64_t rows,
                      int64_t columns, int64_t panel, float* out);

/// bf16: panel p holds at [k / 2][lane][k % 2], columns padded to an even number.
struct BFloat16Panels {
  const uint16_t* data;
  int64_t columns;
};
/// Whether this processor multiplies bf16 pairs in one instruction (and the chosen SIMD target may use it).
bool has_native_bfloat16();
/// x [x_rows, columns rounded up to even] as rounded to bf16 by `round_to_bfloat16`.
void multiply_bfloat16(const BFloat16Panels& panels, int64_t panel_begin, int64_t panel_end,
                       const uint16_t* x, int64_t x_rows, const Output& y);
void round_to_bfloat16(const float* x, int64_t count, uint16_t* out);

/// scale * code + offset: for each group of `group` columns (16 or 32) the codes as [k / 4][lane][k % 4] - of
/// 4 bits: the even quads in the low halves of the bytes, the odd quads in the high halves - then 16 scales
/// and 16 offsets, f16 or f32.
struct AffinePanels {
  const uint8_t* data;
  int64_t columns;
  int64_t group;
  int bits;
  bool half_scales;

  int64_t groups() const { return columns / group; }
  int64_t code_bytes() const { return kPanelRows * group * bits / 8; }
  int64_t group_bytes() const { return code_bytes() + kPanelRows * (half_scales ? 4 : 8); }
  int64_t panel_bytes() const { return groups() * group_bytes(); }
};

/// x ~ scale * code per (row, group), code in [-127, 127]; `sum` is scale * (sum of the codes). A group with
/// NaN or infinity has scale NaN. codes [rows, columns], scale and sum [rows, groups].
struct QuantizedRows {
  int8_t* codes;
  float* scale;
  float* sum;
  int64_t columns;
  int64_t group;

  int64_t groups() const { return columns / group; }
};
void quantize_row(const float* x, int64_t row, const QuantizedRows& out);
void multiply_affine(const AffinePanels& panels, int64_t panel_begin, int64_t panel_end,
                     const QuantizedRows& x, int64_t x_rows, const Output& y);

}  // namespace fovea::kernels::cpu
