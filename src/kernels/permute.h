// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

namespace fovea::kernels {

/// y[..., c] = x[..., order[c]]: x [...,N] f32, order i32 [N] with entries in 0..N-1.
Tensor gather_channels(const Tensor& x, const Tensor& order);
/// The same into a contiguous y of x's shape that shares no memory with it.
void gather_channels(const Tensor& x, const Tensor& order, const Tensor& y);

/// The order that undoes `order`; throws unless it is a permutation of 0..N-1.
Tensor inverse_permutation(const Tensor& order);

}  // namespace fovea::kernels
