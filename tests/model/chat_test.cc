// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/chat.h"

#include <gtest/gtest.h>

#include <vector>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

const std::vector<ChatMessage> kQuestion = {{"user", "Hi"}};
const std::vector<ChatMessage> kTalk = {
    {"system", "Be kind"}, {"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}};

TEST(Chat, RecognisesTheTemplatesOfKnownModels) {
  const std::string chatml =
      "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'}}";
  EXPECT_EQ(recognise_chat_template(chatml), ChatFormat::chatml);
  EXPECT_EQ(recognise_chat_template("You are a helpful AI assistant named SmolLM, trained by Hugging Face" +
                                    chatml),
            ChatFormat::smollm2);
  EXPECT_EQ(recognise_chat_template("You are a helpful assistant." + chatml), ChatFormat::qwen2);
  EXPECT_EQ(recognise_chat_template("You are Qwen, created by Alibaba Cloud. You are a helpful assistant." +
                                    chatml),
            ChatFormat::qwen2_5);
  EXPECT_EQ(
      recognise_chat_template("'<|start_header_id|>' + role + '<|end_header_id|>' + content + '<|eot_id|>'"),
      ChatFormat::llama3);
  EXPECT_EQ(recognise_chat_template("'[INST] ' + '<<SYS>>' + content + ' [/INST]'"), ChatFormat::llama2);
  EXPECT_EQ(recognise_chat_template("'[INST] ' + content + ' [/INST]'"), ChatFormat::mistral);
  EXPECT_EQ(recognise_chat_template("'[INST] ' + content + '[/INST]'"), ChatFormat::mistral_v3);
}

TEST(Chat, SaysThatATemplateIsUnknown) {
  EXPECT_THROW(recognise_chat_template("<start_of_turn>user"), Error);
  EXPECT_THROW(recognise_chat_template("'<|im_start|>' + '<|im_sep|>'"), Error);
  EXPECT_THROW(recognise_chat_template(""), Error);
}

TEST(Chat, WritesChatMl) {
  EXPECT_EQ(
      format_chat(ChatFormat::chatml, kTalk),
      "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
      "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(format_chat(ChatFormat::chatml, kQuestion, false), "<|im_start|>user\nHi<|im_end|>\n");
}

TEST(Chat, AddsTheDefaultSystemMessageOnlyWhereNoneIsGiven) {
  EXPECT_EQ(
      format_chat(ChatFormat::smollm2, kQuestion, false),
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
      "<|im_start|>user\nHi<|im_end|>\n");
  EXPECT_EQ(format_chat(ChatFormat::smollm2, kTalk), format_chat(ChatFormat::chatml, kTalk));
}

TEST(Chat, WritesLlama3) {
  EXPECT_EQ(format_chat(ChatFormat::llama3, std::vector<ChatMessage>{{"user", " Hi\n"}}),
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
            "header_id|>\n\n");
}

TEST(Chat, WritesInstructions) {
  EXPECT_EQ(format_chat(ChatFormat::llama2, kTalk),
            "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]");
  EXPECT_EQ(format_chat(ChatFormat::mistral, kTalk),
            "[INST] Be kind\n\nHi [/INST] Hello</s>[INST] Bye [/INST]");
  EXPECT_EQ(format_chat(ChatFormat::mistral_v3, kQuestion), "[INST] Hi[/INST]");
  EXPECT_THROW(format_chat(ChatFormat::llama2, std::vector<ChatMessage>{{"tool", "x"}}), Error);
}

}  // namespace
}  // namespace fovea::model
