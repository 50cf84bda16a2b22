// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "fovea/core/tensor.h"

namespace fovea::model {

class Model;

/// A long text in which lists of random words return after hundreds of words of filler, the same for every
/// call: what tells heads that look things up from heads that read the neighbourhood. About 1.3 tokens a
/// word.
std::string calibration_text(int64_t words);

/// A measured stand-in for the gates that DuoAttention (Xiao et al. 2024, arXiv 2410.10819) trains: how far
/// each kv head's output moves when its query heads see only the first `sink` and the last `recent` keys,
///
///     alpha[l,g] = ||o_full - o_stream|| / ||o_full||     over rows, channels and query heads of the group,
///
/// on one pass over calibration_text of a few times sink + recent tokens, within the model's context. f32
/// [L,Hkv]; all zero where no row sees more than sink + recent keys. Throws Error when the model has no
/// tokenizer.
Tensor measure_head_gates(const Model& model, int64_t sink, int64_t recent);

}  // namespace fovea::model
