// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "fovea/core/dtype.h"
#include "fovea/kernels/attention.h"

namespace fovea::kernels {

/// A checked call of `decode` as pointers, sizes and strides (in elements, of every axis but the last).
struct DecodeArgs {
  DType type = DType::f32;  ///< of q, k, v and o
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* o = nullptr;     ///< [B,Hq,Tq,Dv], contiguous
  float* lse = nullptr;  ///< [B,Hq,Tq], contiguous
  int64_t batch = 0, heads_q = 0, heads_kv = 0, rows = 0, dim = 0, dim_v = 0;

  struct Rows {
    int64_t batch = 0, head = 0, row = 0;
  };
  /// `page` steps between pages of a paged cache, `batch` between whole sequences.
  struct Keys {
    int64_t page = 0, batch = 0, head = 0, token = 0;
  };
  Rows q_stride;
  Keys k_stride, v_stride;

  int64_t page_size = 0;
  /// Keys and values that are read as f32 instead of k and v; heads_kv then counts groups of heads that are
  /// read together.
  const CodedKv* coded = nullptr;
  int64_t heads_together = 1;
  const int32_t* table = nullptr;  ///< [B,table_pages]; nullptr: whole sequences
  int64_t table_pages = 0;
  const int32_t* lengths = nullptr;  ///< [B]
  const int32_t* pages = nullptr;    ///< [B,Hq,Tq,selected], contiguous; nullptr: all
  int64_t selected = 0;

  float scale = 0, softcap = 0;
  int64_t window_left = -1, window_right = 0, prefix = 0;  ///< as in Visibility
  const float* sink = nullptr;                             ///< [Hq]
  const float* slopes = nullptr;                           ///< [Hq]
  const float* bias = nullptr;                             ///< last axis: key positions
  const uint8_t* mask = nullptr;                           ///< likewise
  Rows bias_stride, mask_stride;                           ///< 0 along broadcast axes
};

namespace cpu {
void decode(const DecodeArgs& args);
}  // namespace cpu

}  // namespace fovea::kernels
