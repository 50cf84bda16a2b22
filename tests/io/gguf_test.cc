// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "fovea/core/thread_pool.h"
#include "fovea/io/file.h"
#include "fovea/io/safetensors.h"
#include "io/gguf_builder.h"
#include "io/message_of.h"

namespace fovea::io {
namespace {

const std::string kData = std::string(FOVEA_SOURCE_DIR) + "/tests/io/data/";

TEST(Gguf, ReadsMetadataOfEveryKind) {
  const GgufFile file = GgufFile::read(kData + "blocks.gguf");
  EXPECT_EQ(file.integer("test.count"), 7);
  EXPECT_EQ(file.integer("test.negative"), -5);
  EXPECT_EQ(file.number("test.fraction"), 0.5);
  EXPECT_EQ(file.number("test.count"), 7.0);
  EXPECT_TRUE(file.boolean("test.yes"));
  EXPECT_EQ(file.string("test.text"), "a\xc3\xa9");
  const auto array = [&](const char* key) { return std::get<GgufArray>(*file.find(key)); };
  EXPECT_EQ(std::get<std::vector<int64_t>>(array("test.integers")), (std::vector<int64_t>{3, -2, 1}));
  EXPECT_EQ(std::get<std::vector<double>>(array("test.fractions")), (std::vector<double>{0.25, 4.0}));
  EXPECT_EQ(std::get<std::vector<std::string>>(array("test.texts")),
            (std::vector<std::string>{"one", "", "three"}));
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_EQ(file.integer("absent", 3), 3);
}

TEST(Gguf, NamesTheKeyThatIsMissingOrOfAnotherType) {
  const GgufFile file = GgufFile::read(kData + "blocks.gguf");
  EXPECT_NE(message_of([&] { file.integer("absent"); }).find("'absent' is missing"), std::string::npos);
  EXPECT_NE(message_of([&] { file.integer("test.text"); }).find("'test.text' does not hold an integer"),
            std::string::npos);
}

class GgufBlocks : public testing::TestWithParam<const char*> {};

TEST_P(GgufBlocks, DequantisesAsTheReferencePackageDoes) {
  const GgufFile file = GgufFile::read(kData + "blocks.gguf");
  const Tensor expected = read_safetensors(kData + "blocks.safetensors").tensors[GetParam()];
  const Tensor values = file.dequantize(*file.tensor(GetParam()));
  ASSERT_EQ(values.shape(), expected.shape());
  for (int64_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(values.data<float>()[i], expected.data<float>()[i]) << "value " << i;
}

TEST_P(GgufBlocks, AffineFormHasTheSameValues) {
  const GgufFile file = GgufFile::read(kData + "blocks.gguf");
  const GgufTensor& tensor = *file.tensor(GetParam());
  if (tensor.type == GgufType::f32 || tensor.type == GgufType::f16 || tensor.type == GgufType::bf16) {
    EXPECT_THROW(file.affine(tensor), Error);
    return;
  }
  const kernels::AffineWeight weight = file.affine(tensor);
  const Tensor expected = file.dequantize(tensor);
  ASSERT_EQ(weight.rows, 2);
  ASSERT_EQ(weight.columns, 256);
  for (int64_t n = 0; n < weight.rows; ++n)
    for (int64_t k = 0; k < weight.columns; ++k) {
      const int code = weight.bits == 8 ? weight.codes.at<uint8_t>(n, k)
                                        : weight.codes.at<uint8_t>(n, k / 2) >> (k % 2 * 4) & 15;
      const float scale = weight.scale.at<float>(n, k / weight.group);
      const float value = scale * static_cast<float>(code) + weight.offset.at<float>(n, k / weight.group);
      // scale * code - bias * scale cancels: one rounding of the larger term.
      ASSERT_NEAR(value, expected.at<float>(n, k), std::abs(scale) * 256 * 0x1p-23f) << n << "," << k;
    }
}

INSTANTIATE_TEST_SUITE_P(EveryType, GgufBlocks,
                         testing::Values("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K",
                                         "Q5_K", "Q6_K"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST(Gguf, ViewsPlainTensorsInPlaceAndRefusesOthers) {
  const GgufFile file = GgufFile::read(kData + "blocks.gguf");
  const GgufTensor& plain = *file.tensor("F32");
  EXPECT_EQ(file.view(plain).raw(), plain.bytes.data());
  EXPECT_EQ(file.view(*file.tensor("I32")).at<int32_t>(1, 2), 3);
  EXPECT_EQ(file.dequantize(*file.tensor("I32")).at<float>(0, 0), -2.0f);
  EXPECT_THROW(file.view(*file.tensor("Q4_0")), Error);
  EXPECT_EQ(file.tensor("absent"), nullptr);
}

TEST(Gguf, DequantisesLongTensorsEquallyForAnyNumberOfThreads) {
  std::vector<std::byte> bytes(144 * 300);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((i * 37 + i / 7) & 0x3b);
  std::vector<float> one(256 * 300), two(256 * 300);
  set_threads(1);
  dequantize_gguf(GgufType::q4_k, bytes.data(), 256 * 300, one.data());
  set_threads(2);
  dequantize_gguf(GgufType::q4_k, bytes.data(), 256 * 300, two.data());
  set_threads(0);
  EXPECT_EQ(std::memcmp(one.data(), two.data(), one.size() * sizeof(float)), 0);
  EXPECT_THROW(dequantize_gguf(GgufType::q4_k, bytes.data(), 100, one.data()), Error);
}

TEST(Gguf, CopiesMisalignedTensors) {
  GgufBuilder builder;
  builder.head(1, 1).text("general.alignment").add(uint32_t{4}).add(uint32_t{1});
  builder.tensor("ab", {3}, 0, 1);
  builder.bytes() += std::string(1, '\0');
  for (const float value : {1.0f, 2.0f, 3.0f}) builder.add(value);
  for (size_t shift = 0; shift < 2; ++shift) {
    const std::string shifted = std::string(shift, ' ') + builder.bytes();
    const GgufFile file = GgufFile::parse(std::as_bytes(std::span(shifted)).subspan(shift),
                                          std::make_shared<std::string>(), "test");
    EXPECT_EQ(file.view(*file.tensor("ab")).at<float>(2), 3.0f);
  }
}

TEST(Gguf, AcceptsVersionTwoAndNoTensors) {
  EXPECT_EQ(GgufBuilder().head(0, 0, 2).parse().tensors().size(), 0u);
  EXPECT_EQ(GgufBuilder().head(1, 0).tensor("empty", {0, 4}, 0, 0).parse().tensors()[0].shape, (Shape{4, 0}));
}

TEST(Gguf, RowsWithoutColumnsCostNothing) {
  const GgufFile file = GgufBuilder().head(1, 0).tensor("w", {0, int64_t{1} << 40}, 8, 0).parse();
  EXPECT_EQ(file.affine(file.tensors()[0]).rows, int64_t{1} << 40);
}

struct Hostile {
  const char* name;
  std::function<void(GgufBuilder&)> build;
  const char* message;
};

class GgufHostile : public testing::TestWithParam<Hostile> {};

TEST_P(GgufHostile, IsRefusedWithItsReason) {
  GgufBuilder builder;
  GetParam().build(builder);
  const std::string message = message_of([&] { builder.parse(); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_NE(message.find("GGUF file 'test'"), std::string::npos) << message;
}

constexpr uint64_t kHuge = uint64_t{1} << 63;

const Hostile kHostile[] = {
    {"Empty", [](GgufBuilder&) {}, "does not begin"},
    {"OtherMagic", [](GgufBuilder& b) { b.bytes() = std::string(64, 'x'); }, "does not begin"},
    {"MagicAlone", [](GgufBuilder& b) { b.bytes() = "GGUF"; }, "ends"},
    {"VersionOne", [](GgufBuilder& b) { b.head(0, 0, 1); }, "version 1"},
    {"BigEndian", [](GgufBuilder& b) { b.head(0, 0, 3u << 24); }, "big endian"},
    {"EntriesBeyondTheFile", [](GgufBuilder& b) { b.head(0, 1000).data(64); }, "1000 does not fit"},
    {"TensorsBeyondTheFile", [](GgufBuilder& b) { b.head(kHuge, 0).data(64); }, "does not fit"},
    {"KeyBeyondTheFile", [](GgufBuilder& b) { b.head(0, 1).add(kHuge).data(64); }, "ends"},
    {"KeyTwice",
     [](GgufBuilder& b) {
       b.head(0, 2);
       for (int i = 0; i < 2; ++i) b.text("k").add(uint32_t{4}).add(uint32_t{1});
     },
     "'k' stands twice"},
    {"UnknownValueType", [](GgufBuilder& b) { b.head(0, 1).text("k").add(uint32_t{13}).data(64); },
     "13 is not a value"},
    {"ArrayCountBeyondTheFile",
     [](GgufBuilder& b) { b.head(0, 1).text("k").add(uint32_t{9}).add(uint32_t{4}).add(kHuge).data(64); },
     "does not fit"},
    {"StringsBeyondTheFile",
     [](GgufBuilder& b) {
       b.head(0, 1).text("k").add(uint32_t{9}).add(uint32_t{8}).add(uint64_t{99}).data(64);
     },
     "does not fit"},
    {"NestedArray",
     [](GgufBuilder& b) {
       b.head(0, 1).text("k").add(uint32_t{9}).add(uint32_t{9}).add(uint64_t{1}).data(64);
     },
     "arrays of arrays"},
    {"IntegerTooLarge", [](GgufBuilder& b) { b.head(0, 1).text("k").add(uint32_t{10}).add(~uint64_t{0}); },
     "too large"},
    {"AlignmentNotAPowerOfTwo",
     [](GgufBuilder& b) { b.head(0, 1).text("general.alignment").add(uint32_t{4}).add(uint32_t{24}); },
     "alignment 24"},
    {"AlignmentZero",
     [](GgufBuilder& b) { b.head(0, 1).text("general.alignment").add(uint32_t{4}).add(uint32_t{0}); },
     "alignment 0"},
    {"AlignmentOfAnotherType",
     [](GgufBuilder& b) { b.head(0, 1).text("general.alignment").add(uint32_t{8}).text("32"); },
     "does not hold an integer"},
    {"TooManyAxes",
     [](GgufBuilder& b) {
       b.head(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(64);
     },
     "5 axes"},
    {"SizesOverflow",
     [](GgufBuilder& b) {
       b.head(1, 0).tensor("t", {1u << 31, 1u << 31, 1u << 31}, 0, 0).data(64);
     },
     "is too large"},
    {"BytesOverflow", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {kHuge / 2}, 0, 0).data(64); },
     "is too large"},
    {"SizeNegative", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {~uint64_t{0}}, 0, 0).data(64); },
     "too large"},
    {"PartOfABlock", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {48}, 2, 0).data(64); },
     "whole blocks of Q4_0"},
    {"UnsupportedType", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {256}, 10, 0).data(64); }, "type Q2_K"},
    {"UnknownType", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {256}, 999, 0).data(64); }, "type 999"},
    {"OffsetBeyondTheData", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {4}, 0, 64).data(64); },
     "end beyond"},
    {"OffsetOverflows", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {4}, 0, ~uint64_t{31}).data(64); },
     "end beyond"},
    {"OffsetMisaligned", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {4}, 0, 8).data(64); },
     "multiple of the alignment"},
    {"DataMissing", [](GgufBuilder& b) { b.head(1, 0).tensor("t", {4}, 0, 0); }, "end beyond"},
    {"TensorsOverlap",
     [](GgufBuilder& b) { b.head(2, 0).tensor("t", {16}, 0, 0).tensor("u", {16}, 0, 32).data(128); },
     "overlaps"},
    {"NameTwice",
     [](GgufBuilder& b) { b.head(2, 0).tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32).data(128); },
     "two tensors are called 't'"},
};

INSTANTIATE_TEST_SUITE_P(Files, GgufHostile, testing::ValuesIn(kHostile),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(Gguf, RefusesEveryTruncation) {
  const std::string whole = read_text(kData + "blocks.gguf");
  for (size_t length = 0; length < whole.size(); length += length < 1500 ? 1 : 37) {
    const std::string part = whole.substr(0, length);
    EXPECT_THROW(GgufFile::parse(std::as_bytes(std::span(part)), nullptr, "part"), Error) << length;
  }
}

}  // namespace
}  // namespace fovea::io
