// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache.h"
#include "fovea/core.h"
#include "fovea/dense.h"
#include "fovea/inference.h"
#include "fovea/io.h"
#include "fovea/kernels.h"
#include "fovea/model.h"
#include "fovea/sparse.h"
