// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/cache/duo_attention.h"
#include "fovea/cache/kv_cache.h"
#include "fovea/cache/quest.h"
#include "fovea/cache/rotatekv.h"
