// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/sparse/minference.h"
#include "fovea/sparse/plan.h"
#include "fovea/sparse/planner.h"
#include "fovea/sparse/sparse_transformer.h"
#include "fovea/sparse/sparse_transformer_block.h"
