// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/model/chat.h"
#include "fovea/model/config.h"
#include "fovea/model/generate.h"
#include "fovea/model/model.h"
#include "fovea/model/model_files.h"
#include "fovea/model/recipe.h"
#include "fovea/model/sampler.h"
#include "fovea/model/session.h"
#include "fovea/model/tokenizer.h"
