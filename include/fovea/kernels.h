// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/kernels/attention.h"
#include "fovea/kernels/blend.h"
#include "fovea/kernels/elementwise.h"
#include "fovea/kernels/hadamard.h"
#include "fovea/kernels/key_plan.h"
#include "fovea/kernels/linear_scan.h"
#include "fovea/kernels/matmul.h"
#include "fovea/kernels/permute.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/quantize.h"
#include "fovea/kernels/rope.h"
#include "fovea/kernels/rows.h"
#include "fovea/kernels/target.h"
