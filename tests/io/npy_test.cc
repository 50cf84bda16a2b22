// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/npy.h"

#include <gtest/gtest.h>

#include <cstring>

#include "fovea/io/file.h"
#include "io/message_of.h"
#include "io/scratch.h"

namespace fovea::io {
namespace {

// A file of the given version around a header and `data` bytes.
std::string file_of(const std::string& header, size_t data, char version = 1) {
  std::string bytes = std::string("\x93NUMPY") + version + '\0';
  const auto length = static_cast<uint32_t>(header.size());
  bytes.append(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
  return bytes + header + std::string(data, '\0');
}

std::string header_of(const std::string& descr, const std::string& shape,
                      const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

Tensor parse(const std::string& bytes) { return parse_npy(std::as_bytes(std::span(bytes)), nullptr, "test"); }

TEST(Npy, RoundTripsEveryTypeAndRank) {
  const Scratch scratch;
  for (const DType dtype : {DType::f32, DType::f16, DType::i8, DType::u8, DType::i32, DType::i64})
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3, 4}, Shape{0, 4}}) {
      Tensor t = Tensor::empty(shape, dtype);
      for (int64_t i = 0; i < t.bytes(); ++i) static_cast<uint8_t*>(t.raw())[i] = static_cast<uint8_t>(i * 7);
      write_npy(scratch / "a.npy", t);
      const Tensor back = read_npy(scratch / "a.npy");
      ASSERT_EQ(back.describe(), t.describe());
      EXPECT_EQ(std::memcmp(back.raw(), t.raw(), static_cast<size_t>(t.bytes())), 0);
    }
}

TEST(Npy, WritesStridedViewsInOrder) {
  const Scratch scratch;
  const Tensor t = Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {2, 3});
  write_npy(scratch / "a.npy", t.transpose(0, 1));
  EXPECT_EQ(read_npy(scratch / "a.npy").at<float>(2, 1), 6.0f);
}

TEST(Npy, ReadsEveryVersionAndSpellingOfTheHeader) {
  for (const char version : {1, 2, 3})
    EXPECT_EQ(parse(file_of(header_of("<f4", "(2, 3)"), 24, version)).shape(), (Shape{2, 3}));
  EXPECT_EQ(parse(file_of("{\"shape\":(5,),\"descr\":\"|b1\",\"fortran_order\":True}", 5)).dtype(),
            DType::u8);
}

TEST(Npy, RefusesToWriteBfloat16) {
  const Scratch scratch;
  EXPECT_NE(
      message_of([&] { write_npy(scratch / "a", Tensor::empty({1}, DType::bf16)); }).find("no type bf16"),
      std::string::npos);
  EXPECT_EQ(scratch.files(), 0u);
}

struct Hostile {
  const char* name;
  std::string bytes;
  const char* message;
};

const Hostile kHostile[] = {
    {"Empty", "", "does not begin"},
    {"OtherMagic", "\x93NUMPX" + std::string(20, '\0'), "does not begin"},
    {"MagicAlone", "\x93NUMPY", "within its version"},
    {"NoLength", std::string("\x93NUMPY\x01\x00", 8), "within the header's length"},
    {"VersionFour", file_of(header_of("<f4", "(1,)"), 4, 4), "version 4"},
    {"HeaderBeyondTheFile", file_of(header_of("<f4", "(1,)"), 0, 2).replace(9, 1, "\x40"), "exceeds the"},
    {"NotADictionary", file_of("[]", 0), "'{' was expected"},
    {"DictionaryOpen", file_of("{'descr': '<f4'", 0), "'}' was expected"},
    {"WordOpen", file_of("{'descr", 0), "quoted word"},
    {"KeyMissing", file_of("{'descr': '<f4', 'shape': (1,)}", 4), "is missing"},
    {"KeyTwice", file_of("{'descr': '<f4', 'descr': '<f4'}", 4), "stands twice"},
    {"UnknownKey", file_of("{'strides': (1,)}", 4), "'strides' is unknown"},
    {"TextBehind", file_of(header_of("<f4", "(1,)") + "x", 4), "text follows"},
    {"BigEndian", file_of(header_of(">f4", "(1,)"), 4), "type '>f4'"},
    {"Doubles", file_of(header_of("<f8", "(1,)"), 8), "type '<f8'"},
    {"Objects", file_of(header_of("|O", "(1,)"), 8), "type '|O'"},
    {"Records", file_of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", 4), "records"},
    {"FortranOrder", file_of(header_of("<f4", "(2, 2)", "True"), 16), "Fortran order"},
    {"OrderNotBoolean", file_of(header_of("<f4", "(2, 2)", "1"), 16), "neither True nor False"},
    {"NegativeSize", file_of(header_of("<f4", "(-1,)"), 4), "a size was expected"},
    {"SizeTooLarge", file_of(header_of("<f4", "(99999999999999999999,)"), 4), "too large"},
    {"BytesOverflow", file_of(header_of("<f4", "(4611686018427387904,)"), 0), "does not fill"},
    {"StridesOverflow", file_of(header_of("<f4", "(0, 4294967296, 4294967296)"), 0), "does not fill"},
    {"NineAxes", file_of(header_of("<f4", "(1,1,1,1,1,1,1,1,1)"), 4), "more than 8 axes"},
    {"ShapeOpen", file_of("{'shape': (1,", 4), "a size was expected"},
    {"DataTooShort", file_of(header_of("<f4", "(2,)"), 7), "does not fill the 7 bytes"},
    {"DataTooLong", file_of(header_of("<f4", "(2,)"), 9), "does not fill the 9 bytes"},
};

class NpyHostile : public testing::TestWithParam<Hostile> {};

TEST_P(NpyHostile, IsRefusedWithItsReason) {
  const std::string message = message_of([&] { parse(GetParam().bytes); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_NE(message.find("npy file 'test'"), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(Files, NpyHostile, testing::ValuesIn(kHostile),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace fovea::io
