// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/kernels/matmul.h"

namespace fovea::io {

/// Block formats of GGUF tensors that Fovea reads.
enum class GgufType { f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, i8, i16, i32, i64 };

/// A tensor as it lies in the file. `shape` is in our order (rows first): GGUF's ne[0] is the last axis.
struct GgufTensor {
  std::string name;
  GgufType type;
  Shape shape;
  std::span<const std::byte> bytes;
};

using GgufArray =
    std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>, std::vector<bool>>;
using GgufValue = std::variant<int64_t, double, bool, std::string, GgufArray>;

/// A memory-mapped GGUF file, version 2 or 3. Every offset, count and size is checked before use.
class GgufFile {
 public:
  static GgufFile read(const std::string& path);
  static GgufFile parse(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                        const std::string& name);

  /// Metadata by key; nullptr when absent.
  const GgufValue* find(std::string_view key) const;
  // Typed access: the fallback where the key is absent; an Error that names the key where its type is
  // another.
  int64_t integer(std::string_view key, std::optional<int64_t> fallback = {}) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  std::string string(std::string_view key, const std::optional<std::string>& fallback = {}) const;

  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* tensor(std::string_view name) const;

  /// The values in f32.
  Tensor dequantize(const GgufTensor& tensor) const;
  /// f32, f16, bf16, i8, i32 and i64 tensors as views of the file (a copy where it lies misaligned there).
  Tensor view(const GgufTensor& tensor) const;
  /// Quantised matrices as scale * code + offset, without loss of codes (scales become f32); types q4_0 ..
  /// q6_k.
  kernels::AffineWeight affine(const GgufTensor& tensor) const;

 private:
  template <typename T>
  T value(std::string_view key, const std::optional<T>& fallback, std::string_view kind) const;

  std::shared_ptr<const void> owner_;
  std::string file_;  // as messages name it
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

/// Values of one tensor's bytes, `count` of them, in f32.
void dequantize_gguf(GgufType type, const std::byte* bytes, int64_t count, float* out);

}  // namespace fovea::io
