// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/gguf.h"

#include <functional>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"
#include "fovea/model/tokenizer.h"
#include "touch.h"

namespace {

void attempt(const std::function<void()>& action) {
  try {
    action();
  } catch (const fovea::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  [[maybe_unused]] static const bool single = (fovea::set_threads(1), true);
  attempt([&] {
    const auto file = fovea::io::GgufFile::parse(std::as_bytes(std::span(data, size)), nullptr, "fuzz");
    for (const auto& tensor : file.tensors()) {
      attempt([&] { fovea::touch(file.dequantize(tensor)); });
      attempt([&] { fovea::touch(file.view(tensor)); });
      attempt([&] { fovea::touch(file.affine(tensor).codes); });
    }
    const auto tokenizer = fovea::model::Tokenizer::from_gguf(file);
    const auto ids = tokenizer.encode("a1 <|im_start|>it's\n\n\xff", true, true);
    attempt([&] { tokenizer.decode(ids); });
  });
  return 0;
}
