// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/io/file.h"
#include "fovea/io/gguf.h"
#include "fovea/io/npy.h"
#include "fovea/io/safetensors.h"
