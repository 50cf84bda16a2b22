// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "fovea/core/tensor.h"

/// Low-bit storage of activations.
namespace fovea::kernels {

/// float32 <-> e4m3 ("fn": maximum 448, no infinity, subnormals to 2^-9), round to nearest even, saturating,
/// sign of zero kept; NaN is 0x7f.
uint8_t to_e4m3(float x);
float from_e4m3(uint8_t code);

/// codes u8 of x's shape and one scale = amax/448 (1 if amax = 0) per block of `block` rows: x [B,H,T,D] ->
/// scales [B,H,ceil(T/block)]. code = e4m3(x / scale).
struct Fp8Blocks {
  Tensor codes, scales;
};
Fp8Blocks quantize_e4m3(const Tensor& x, int64_t block);
Tensor dequantize_e4m3(const Fp8Blocks& blocks, int64_t block);

/// Asymmetric integers per run of `group` channels of a row: high = clip max, low = clip min, scale =
/// (high-low)/(2^bits-1), zero = rint(-low/scale), code = clamp(rint(x/scale) + zero, 0, 2^bits-1); a
/// constant run has scale = high, zero = -1, code = 0. Codes are packed along the row as a bit stream, least
/// significant bit first. x [...,N] f32 -> codes u8 [...,ceil(N bits/8)], scale and zero f32 [...,N/group].
struct AffineBlocks {
  Tensor codes, scale, zero;
};
AffineBlocks quantize_affine(const Tensor& x, int bits, int64_t group, float clip);
/// scale * (code - zero): [...,N].
Tensor dequantize_affine(const AffineBlocks& blocks, int bits, int64_t group, int64_t channels);

/// Row-level forms of the two functions above, for caches that quantise and read a row at a time.
void quantize_affine_row(const float* x, int64_t channels, int bits, int64_t group, float clip,
                         uint8_t* codes, float* scale, float* zero);
void dequantize_affine_row(const uint8_t* codes, const float* scale, const float* zero, int64_t channels,
                           int bits, int64_t group, float* x);

/// Rows of codes as a cache holds them: row i has its codes at codes + i * code_stride and, at scales + i *
/// scale_stride, the scales of its groups and then their zeros, f32 or f16 (strides in bytes).
struct AffineRows {
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;
  int64_t code_stride = 0, scale_stride = 0;
  DType scale_type = DType::f32;
  int64_t channels = 0, group = 1;
  int bits = 8;
};
/// x [count,channels], contiguous.
void dequantize_affine_rows(const AffineRows& rows, int64_t count, float* x);

}  // namespace fovea::kernels
