// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include "fovea/kernels/attention.h"

/// Checked arguments of the attention kernels, as pointers, strides in elements and sizes. Internal: shared
/// by the forward, backward and planned kernels.
namespace fovea::kernels {

/// A [batch, head, row, column] array whose last axis is contiguous. A stride of 0 repeats (broadcast).
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0, head = 0, row = 0;

  explicit operator bool() const { return data != nullptr; }
  /// The address of a row.
  char* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<char*>(data) + (b * batch + h * head + r * row) * size_of(dtype);
  }
  template <typename T>
  T* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<T*>(data) + (b * batch + h * head + r * row);
  }
};

/// The keys one row sees: [0, prefix) and [begin, end), with prefix <= begin <= end.
struct VisibleKeys {
  int64_t prefix, begin, end;

  bool sees(int64_t j) const { return j < prefix || (j >= begin && j < end); }
  bool empty() const { return prefix == 0 && begin == end; }
  int64_t first() const { return prefix > 0 ? 0 : begin; }
  int64_t last() const { return begin < end ? end : prefix; }  ///< one past the last
};

/// One attention problem. Absent options are null.
struct AttentionArgs {
  int64_t batch = 0, heads_q = 0, heads_kv = 0, queries = 0, keys = 0, dim = 0, dim_v = 0;
  View q, k, v;
  float scale = 1, softcap = 0;
  Visibility visible;
  const int32_t* k_len = nullptr;
  const float* sink = nullptr;
  const float* slopes = nullptr;
  View bias, mask;      ///< [batch, head, query, key], f32 and u8
  View bias_q, bias_k;  ///< [batch, head, row, rank], f32
  int64_t rank = 0;
  int64_t query_tile = 0, key_tile = 0;
  ScoreArithmetic scores = ScoreArithmetic::automatic;

  int64_t group() const { return heads_kv > 0 ? heads_q / heads_kv : 0; }
  int64_t length(int64_t b) const { return k_len ? k_len[b] : keys; }
  /// Position of query row i among the keys.
  int64_t position(int64_t b, int64_t i) const { return i + length(b) - queries; }
  VisibleKeys visible_keys(int64_t b, int64_t i) const {
    const int64_t n = length(b), p = position(b, i);
    const int64_t end =
        visible.window_right < 0 ? n : std::clamp<int64_t>(p + visible.window_right + 1, 0, n);
    const int64_t left = visible.window_left < 0 ? 0 : std::clamp<int64_t>(p - visible.window_left, 0, end);
    const int64_t prefix = std::min(visible.prefix, end);
    return prefix >= left ? VisibleKeys{0, 0, end} : VisibleKeys{prefix, left, end};
  }
};

/// Checks everything a call gave and flattens it. `caller` begins every message. The tensors must outlive the
/// result. `o`, when the caller has it, is not part of this.
AttentionArgs attention_args(std::string_view caller, const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionParams& params);

/// A rank-4 tensor as a View; axes of size 1 get stride 0. Throws unless the last axis is contiguous.
View view_of(std::string_view caller, std::string_view name, const Tensor& tensor);

}  // namespace fovea::kernels
