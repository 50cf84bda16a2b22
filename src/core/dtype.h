// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fovea {

enum class DType : uint8_t { f32, f16, bf16, i8, u8, i32, i64 };

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::i8:
    case DType::u8:
      return 1;
    case DType::i64:
      return 8;
    default:
      return 4;
  }
}

constexpr bool is_float(DType dtype) { return dtype <= DType::bf16; }

/// "f32", "bf16", ...
std::string_view name_of(DType dtype);
std::optional<DType> parse_dtype(std::string_view name);

/// Storage types of the 16-bit floats. Arithmetic happens in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
float to_float(Half x);

/// Round to nearest even; overflow becomes infinity, NaN stays NaN.
BFloat16 to_bfloat16(float x);
Half to_half(float x);

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};

}  // namespace fovea
