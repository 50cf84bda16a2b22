// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "fovea/io/file.h"
#include "io/message_of.h"
#include "io/scratch.h"

namespace fovea::io {
namespace {

std::string file_of(const std::string& header, size_t data) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes + header + std::string(data, '\x01');
}

SafetensorsFile parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), nullptr, "test");
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TEST(Safetensors, RoundTripsEveryTypeEmptyTensorsAndMetadata) {
  const Scratch scratch;
  Tensors tensors;
  for (const DType dtype :
       {DType::u8, DType::f32, DType::f16, DType::bf16, DType::i8, DType::i32, DType::i64}) {
    Tensor t = Tensor::empty({3, 5}, dtype);
    for (int64_t i = 0; i < t.bytes(); ++i) static_cast<uint8_t*>(t.raw())[i] = static_cast<uint8_t>(i * 7);
    tensors.set(std::string(name_of(dtype)), t);
  }
  tensors.set("empty", Tensor::empty({0, 4}));
  tensors.set("scalar", Tensor::full({}, 2.5f));
  tensors.set("sliced", tensors["f32"].transpose(0, 1));
  write_safetensors(scratch / "a", tensors, {{"key", "value \"quoted\"\n"}});
  const SafetensorsFile file = read_safetensors(scratch / "a");
  EXPECT_EQ(file.metadata.at("key"), "value \"quoted\"\n");
  ASSERT_EQ(file.tensors.size(), tensors.size());
  auto expected = tensors.begin();
  for (const auto& [name, t] : file.tensors) {
    EXPECT_EQ(name, expected->first) << "the order is kept";
    ASSERT_EQ(t.describe(), expected->second.describe());
    EXPECT_EQ(std::memcmp(t.raw(), expected->second.contiguous().raw(), static_cast<size_t>(t.bytes())), 0)
        << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % static_cast<uintptr_t>(size_of(t.dtype())), 0u) << name;
    ++expected;
  }
}

TEST(Safetensors, TensorsKeepTheFileMapped) {
  const Scratch scratch;
  write_safetensors(scratch / "a", {{"x", Tensor::full({4}, 3)}});
  const Tensor x = read_safetensors(scratch / "a").tensors["x"];
  EXPECT_EQ(x.at<float>(3), 3.0f);
}

TEST(Safetensors, CopiesMisalignedTensors) {
  const std::string header =
      R"({"b":)" + tensor("U8", "[1]", "[0,1]") + R"(,"x":)" + tensor("F32", "[2]", "[1,9]") + "}";
  const SafetensorsFile file = parse(file_of(header, 9));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensors["x"].raw()) % 4, 0u);
  EXPECT_EQ(file.tensors["x"].at<float>(1), file.tensors["x"].at<float>(0));
}

TEST(Safetensors, AcceptsNoTensorsBooleansAndPadding) {
  EXPECT_EQ(parse(file_of("{}   ", 0)).tensors.size(), 0u);
  EXPECT_EQ(parse(file_of(R"({"m":)" + tensor("BOOL", "[2]", "[0,2]") + "}", 2)).tensors["m"].dtype(),
            DType::u8);
}

TEST(Safetensors, RefusesToWriteWhatItCouldNotRead) {
  const Scratch scratch;
  EXPECT_NE(message_of([&] {
              write_safetensors(scratch / "a", {{"x", Tensor()}});
            }).find("undefined"),
            std::string::npos);
  const Tensor one = Tensor::full({1}, 1);
  EXPECT_NE(message_of([&] {
              write_safetensors(scratch / "a", {{"__metadata__", one}});
            }).find("__metadata__"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              write_safetensors(scratch / "a", {{"\xff", one}});
            }).find("UTF-8"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              write_safetensors(scratch / "a", {{"x", one}, {"x", one}});
            }).find("two tensors"),
            std::string::npos);
  EXPECT_EQ(scratch.files(), 0u);
}

struct Hostile {
  const char* name;
  std::string bytes;
  const char* message;
};

const std::string kFour = tensor("F32", "[1]", "[0,4]");

const Hostile kHostile[] = {
    {"Empty", "", "too few"},
    {"SevenBytes", "1234567", "too few"},
    {"LengthBeyondTheFile", file_of("{}", 0).replace(0, 1, "\x40"), "exceeds the 2 bytes"},
    {"LengthBeyondTheLimit", std::string(16, '\xff'), "exceeds the limit"},
    {"NotAnObject", file_of("[]", 0), "does not start with '{'"},
    {"LeadingSpace", file_of(" {}", 0), "does not start with '{'"},
    {"NotJson", file_of("{\"a\":", 0), "not valid JSON"},
    {"TextAfterTheObject", file_of("{}x", 0), "not valid JSON"},
    {"InvalidUtf8", file_of("{\"\xff\":{}}", 0), "not valid JSON"},
    {"DeeplyNested", file_of("{\"a\":" + std::string(100000, '['), 0), "unexpected an array"},
    {"ObjectsNested", file_of(R"({"a":{"dtype":{"b":{}}}})", 0), "unexpected an object"},
    {"NameTwice", file_of("{\"a\":" + kFour + ",\"a\":" + kFour + "}", 4), "'a' stands twice"},
    {"FieldTwice", file_of(R"({"a":{"dtype":"F32","dtype":"F32"}})", 4), "dtype stands twice"},
    {"OffsetsTwice", file_of(R"({"a":{"data_offsets":[],"data_offsets":[]}})", 4),
     "data_offsets stands twice"},
    {"UnknownField", file_of(R"({"a":{"strides":[1]}})", 4), "unknown field 'strides'"},
    {"FieldMissing", file_of(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "data_offsets is missing"},
    {"ShapeMissing", file_of(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), "shape is missing"},
    {"TypeMissing", file_of(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4), "dtype is missing"},
    {"UnsupportedType", file_of("{\"a\":" + tensor("F64", "[1]", "[0,8]") + "}", 8),
     "type 'F64' is not one of"},
    {"ThreeOffsets", file_of("{\"a\":" + tensor("F32", "[1]", "[0,4,8]") + "}", 8), "more than two"},
    {"NegativeSize", file_of("{\"a\":" + tensor("F32", "[-1]", "[0,4]") + "}", 4), "the number -1"},
    {"FractionalSize", file_of("{\"a\":" + tensor("F32", "[1.5]", "[0,4]") + "}", 4), "a fraction"},
    {"SizeAsText", file_of("{\"a\":" + tensor("F32", "[\"1\"]", "[0,4]") + "}", 4), "unexpected a string"},
    {"NineAxes", file_of("{\"a\":" + tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4),
     "more than 8 axes"},
    {"CountOverflows",
     file_of("{\"a\":" + tensor("F32", "[4294967296,4294967296,4294967296]", "[0,0]") + "}", 0),
     "does not fill"},
    {"BytesOverflow", file_of("{\"a\":" + tensor("F32", "[4611686018427387904]", "[0,0]") + "}", 0),
     "does not fill"},
    {"SizeAboveInt64", file_of("{\"a\":" + tensor("F32", "[18446744073709551615]", "[0,4]") + "}", 4),
     "too large"},
    {"ShapeSmallerThanData", file_of("{\"a\":" + tensor("F32", "[1]", "[0,8]") + "}", 8), "does not fill"},
    {"OffsetsBackwards", file_of("{\"a\":" + tensor("F32", "[1]", "[4,0]") + "}", 4), "run backwards"},
    {"OffsetsBeyondTheFile", file_of("{\"a\":" + tensor("F32", "[2]", "[0,8]") + "}", 4),
     "end beyond the 4 bytes"},
    {"Overlap",
     file_of("{\"a\":" + tensor("F32", "[2]", "[0,8]") + ",\"b\":" + tensor("F32", "[2]", "[4,12]") + "}",
             12),
     "tensor 'b': data_offsets [4,12] overlap"},
    {"Hole", file_of("{\"a\":" + kFour + ",\"b\":" + tensor("F32", "[1]", "[8,12]") + "}", 12),
     "leave a hole"},
    {"HoleAtTheStart", file_of("{\"a\":" + tensor("F32", "[1]", "[4,8]") + "}", 8), "leave a hole"},
    {"BytesLeftOver", file_of("{\"a\":" + kFour + "}", 5), "belong to no tensor"},
    {"MetadataNotText", file_of(R"({"__metadata__":{"a":1}})", 0), "__metadata__: unexpected a number"},
    {"MetadataNested", file_of(R"({"__metadata__":{"a":{}}})", 0), "__metadata__: unexpected an object"},
    {"MetadataKeyTwice", file_of(R"({"__metadata__":{"a":"1","a":"2"}})", 0), "stands twice"},
    {"TensorIsNull", file_of(R"({"a":null})", 0), "unexpected null"},
};

class SafetensorsHostile : public testing::TestWithParam<Hostile> {};

TEST_P(SafetensorsHostile, IsRefusedWithItsReason) {
  const std::string message = message_of([&] { parse(GetParam().bytes); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_NE(message.find("safetensors file 'test'"), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(Files, SafetensorsHostile, testing::ValuesIn(kHostile),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(Safetensors, RefusesEveryTruncation) {
  const Scratch scratch;
  write_safetensors(scratch / "a", {{"x", Tensor::full({4, 4}, 3)}, {"y", Tensor::full({2}, 1)}});
  const std::string whole = read_text(scratch / "a");
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_THROW(parse(whole.substr(0, length)), Error) << length;
}

}  // namespace
}  // namespace fovea::io
