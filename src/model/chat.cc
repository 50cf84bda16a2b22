// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/chat.h"

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

constexpr std::string_view kSmollmSystem =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
constexpr std::string_view kQwen2System = "You are a helpful assistant.";
constexpr std::string_view kQwen25System =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// The system message that a ChatML model was trained with where the conversation brings none.
std::string_view default_system(ChatFormat format) {
  switch (format) {
    case ChatFormat::smollm2:
      return kSmollmSystem;
    case ChatFormat::qwen2:
      return kQwen2System;
    case ChatFormat::qwen2_5:
      return kQwen25System;
    default:
      return {};
  }
}

void add(std::string& out, std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts) out += part;
}

std::string chatml(ChatFormat format, std::span<const ChatMessage> messages, bool open_answer) {
  std::string out;
  const std::string_view system = default_system(format);
  if (!system.empty() && (messages.empty() || messages[0].role != "system"))
    add(out, {"<|im_start|>system\n", system, "<|im_end|>\n"});
  for (const ChatMessage& message : messages)
    add(out, {"<|im_start|>", message.role, "\n", message.content, "<|im_end|>\n"});
  if (open_answer) out += "<|im_start|>assistant\n";
  return out;
}

std::string llama3(std::span<const ChatMessage> messages, bool open_answer) {
  std::string out;
  for (const ChatMessage& message : messages)
    add(out, {"<|start_header_id|>", message.role, "<|end_header_id|>\n\n", trimmed(message.content),
              "<|eot_id|>"});
  if (open_answer) out += "<|start_header_id|>assistant<|end_header_id|>\n\n";
  return out;
}

// Llama 2 and Mistral write a question as [INST] ... [/INST], with the system message inside the first, and
// the answer behind it. An answer opens with [/INST], so there is nothing to add for it.
std::string instructions(ChatFormat format, std::span<const ChatMessage> messages) {
  const bool llama2 = format == ChatFormat::llama2;
  std::string out, system;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = llama2 ? "<<SYS>>\n" + message.content + "\n<</SYS>>\n\n" : message.content + "\n\n";
    } else if (message.role == "user") {
      if (llama2 && !out.empty()) out += "<s>";
      const std::string_view content = llama2 ? trimmed(message.content) : message.content;
      add(out, {"[INST] ", system, content, format == ChatFormat::mistral_v3 ? "[/INST]" : " [/INST]"});
      system.clear();
    } else {
      require(message.role == "assistant", "a chat message has the role '", message.role,
              "', expected system, user or assistant");
      add(out, {" ", trimmed(message.content), llama2 ? " </s>" : "</s>"});
    }
  }
  return out;
}

}  // namespace

ChatFormat recognise_chat_template(std::string_view chat_template) {
  if (has(chat_template, "<|im_start|>") && !has(chat_template, "<|im_sep|>")) {
    if (has(chat_template, kSmollmSystem)) return ChatFormat::smollm2;
    if (has(chat_template, kQwen25System)) return ChatFormat::qwen2_5;
    return has(chat_template, kQwen2System) ? ChatFormat::qwen2 : ChatFormat::chatml;
  }
  if (has(chat_template, "<|start_header_id|>") && has(chat_template, "<|eot_id|>"))
    return ChatFormat::llama3;
  if (has(chat_template, "[INST]")) {
    if (has(chat_template, "<<SYS>>")) return ChatFormat::llama2;
    return has(chat_template, " [/INST]") ? ChatFormat::mistral : ChatFormat::mistral_v3;
  }
  throw Error(chat_template.empty()
                  ? "the model has no chat template"
                  : "the model's chat template is none that Fovea knows (ChatML, Llama 2, Llama 3, "
                    "Mistral, Qwen 2)",
              ErrorCode::unsupported);
}

std::string format_chat(ChatFormat format, std::span<const ChatMessage> messages, bool open_answer) {
  switch (format) {
    case ChatFormat::llama3:
      return llama3(messages, open_answer);
    case ChatFormat::llama2:
    case ChatFormat::mistral:
    case ChatFormat::mistral_v3:
      return instructions(format, messages);
    default:
      return chatml(format, messages, open_answer);
  }
}

}  // namespace fovea::model
