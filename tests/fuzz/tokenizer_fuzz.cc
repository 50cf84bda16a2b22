// SPDX-License-Identifier: Apache-2.0
//
// Any bytes through a small vocabulary of each scheme: what comes out must decode.
#include "fovea/model/tokenizer.h"

#include <cstdlib>

#include "model/small_vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto kTokenizers = {fovea::model::small_byte_level(), fovea::model::small_sentencepiece()};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& tokenizer : kTokenizers) {
    const auto ids = tokenizer.encode(text, true, true);
    fovea::model::StreamDecoder stream(tokenizer, false);
    std::string streamed, whole;
    for (const int32_t id : ids) {
      streamed += stream.push(id);
      whole += tokenizer.piece(id);
    }
    if (streamed + stream.finish() != whole) std::abort();
  }
  return 0;
}
