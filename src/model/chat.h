// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace fovea::model {

struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

/// How a model expects a conversation to be written. Templates are recognised, not interpreted.
enum class ChatFormat { chatml, smollm2, qwen2, llama2, llama3, mistral };

/// Recognises the template of a model (GGUF: tokenizer.chat_template). Throws Error(unsupported) for one that
/// Fovea does not know.
ChatFormat recognise_chat_template(std::string_view chat_template);

/// The conversation as one prompt, to be encoded with parse_special on (and add_special on: no format here
/// writes the begin token itself). `open_answer` ends it where the assistant's answer begins.
std::string format_chat(ChatFormat format, std::span<const ChatMessage> messages, bool open_answer = true);

}  // namespace fovea::model
