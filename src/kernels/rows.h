// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

/// Operations on the rows (last axis) of f32 tensors.
namespace fovea::kernels {

/// softmax of every row of x [...,N]; an all -inf row becomes zeros.
Tensor softmax_rows(const Tensor& x);

/// Indices i32 [...,min(count,N)] of the largest entries of every row of x [...,N], ascending by index. Equal
/// values: the lower index wins. +inf wins over all numbers; NaN is treated as -inf.
Tensor top_k_rows(const Tensor& x, int64_t count);

/// Indices i32 [...,N] that sort every row ascending, equal values in index order.
Tensor argsort_rows(const Tensor& x);

/// y = x / sqrt(mean(x^2) + epsilon) * weight, x [...,E], weight [E].
Tensor rms_norm(const Tensor& x, const Tensor& weight, float epsilon);

/// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, x [...,E].
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon);

}  // namespace fovea::kernels
