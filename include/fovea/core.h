// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/catalogue.h"
#include "fovea/core/device.h"
#include "fovea/core/dtype.h"
#include "fovea/core/error.h"
#include "fovea/core/memory.h"
#include "fovea/core/operator.h"
#include "fovea/core/options.h"
#include "fovea/core/papers.h"
#include "fovea/core/rng.h"
#include "fovea/core/tensor.h"
#include "fovea/core/tensor_spec.h"
#include "fovea/core/thread_pool.h"
