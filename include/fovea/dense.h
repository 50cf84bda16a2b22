// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/dense/flash_attention.h"
#include "fovea/dense/memory_efficient_attention.h"
