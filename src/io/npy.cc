// SPDX-License-Identifier: Apache-2.0
//
// File: "\x93NUMPY", u8 major and minor version, the header's length (u16 in version 1, else u32), the header
// (a Python dictionary of descr, fortran_order and shape, padded with spaces to a newline), then the
// elements.
#include "fovea/io/npy.h"

#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "fovea/core/error.h"
#include "fovea/io/checks.h"
#include "fovea/io/file.h"

namespace fovea::io {
namespace {

static_assert(std::endian::native == std::endian::little, ".npy files are read as little endian");

constexpr std::string_view kMagic = "\x93NUMPY";

std::optional<DType> dtype_of(std::string_view descr) {
  if (descr == "<f4") return DType::f32;
  if (descr == "<f2") return DType::f16;
  if (descr == "|i1") return DType::i8;
  if (descr == "|u1" || descr == "|b1") return DType::u8;
  if (descr == "<i4") return DType::i32;
  if (descr == "<i8") return DType::i64;
  return std::nullopt;
}

std::string descr_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "<f4";
    case DType::f16:
      return "<f2";
    case DType::i8:
      return "|i1";
    case DType::u8:
      return "|u1";
    case DType::i32:
      return "<i4";
    case DType::i64:
      return "<i8";
    default:
      return "";
  }
}

// Reads the header's dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::string file) : text_(text), file_(std::move(file)) { parse(); }

  DType dtype() const { return *dtype_; }
  const Shape& shape() const { return *shape_; }

 private:
  void parse() {
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !dtype_.has_value())
        descr();
      else if (key == "fortran_order" && !order_.has_value())
        order_ = boolean();
      else if (key == "shape" && !shape_.has_value())
        shape();
      else
        fail("the key " + quote(key) + " is unknown or stands twice");
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) fail("text follows the dictionary");
    if (!dtype_ || !order_ || !shape_) fail("one of descr, fortran_order and shape is missing");
    if (*order_ && shape_->rank() > 1) fail("Fortran order is not supported");
  }

  void descr() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '[') fail("records are not supported");
    const std::string_view name = string();
    dtype_ = dtype_of(name);
    if (!dtype_) fail("type " + quote(name) + " is not one of <f4, <f2, |i1, |u1, |b1, <i4, <i8");
  }

  void shape() {
    shape_ = Shape();
    expect('(');
    while (!accept(')')) {
      if (shape_->rank() == Shape::kMaxRank) fail("more than " + std::to_string(Shape::kMaxRank) + " axes");
      shape_->push_back(integer());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }

  int64_t integer() {
    skip_space();
    const size_t first = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[at_] - '0', &value))
        fail("a size is too large");
      ++at_;
    }
    if (at_ == first) fail("a size was expected at byte " + std::to_string(at_));
    return value;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      return value;
    }
    fail("fortran_order is neither True nor False");
  }

  std::string_view string() {
    skip_space();
    const char mark = at_ < text_.size() ? text_[at_] : '\0';
    const size_t end = mark == '\'' || mark == '"' ? text_.find(mark, at_ + 1) : std::string_view::npos;
    if (end == std::string_view::npos) fail("a quoted word was expected at byte " + std::to_string(at_));
    const std::string_view word = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return word;
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  bool accept(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(std::string("'") + c + "' was expected at byte " + std::to_string(at_));
  }

  [[noreturn]] void fail(const std::string& trouble) const { throw Error(file_ + ": header: " + trouble); }

  std::string_view text_;
  std::string file_;
  size_t at_ = 0;
  std::optional<DType> dtype_;
  std::optional<bool> order_;
  std::optional<Shape> shape_;
};

}  // namespace

Tensor parse_npy(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                 const std::string& name) {
  const std::string file = "npy file '" + name + "'";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  require(text.starts_with(kMagic), file, ": it does not begin as a .npy file does");
  require(text.size() >= kMagic.size() + 2, file, ": the file ends within its version");
  const auto major = static_cast<unsigned char>(text[kMagic.size()]);
  require(major >= 1 && major <= 3, file, ": version ", unsigned{major},
          " is not supported, only 1 to 3 are");

  const size_t width = major == 1 ? 2 : 4, start = kMagic.size() + 2 + width;
  require(text.size() >= start, file, ": the file ends within the header's length");
  uint32_t length = 0;
  std::memcpy(&length, bytes.data() + start - width, width);
  require(length <= text.size() - start, file, ": the header length ", length, " exceeds the ",
          text.size() - start, " bytes that follow");
  const HeaderParser header(text.substr(start, length), file);

  const std::span<const std::byte> data = bytes.subspan(start + length);
  const std::optional<int64_t> size = byte_count(header.shape(), size_of(header.dtype()));
  require(size.has_value() && static_cast<uint64_t>(*size) == data.size(), file, ": shape ",
          header.shape().to_string(), " of ", name_of(header.dtype()), " does not fill the ", data.size(),
          " bytes of data");
  const std::byte* at = data.data();
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(size_of(header.dtype())) == 0)
    return Tensor::wrap(const_cast<std::byte*>(at), header.shape(), header.dtype(), std::move(owner));
  Tensor copy = Tensor::empty(header.shape(), header.dtype());
  std::memcpy(copy.raw(), at, data.size());
  return copy;
}

Tensor read_npy(const std::string& path) {
  const MappedFile file = map_file(path);
  return parse_npy(file.bytes, file.owner, path);
}

void write_npy(const std::string& path, const Tensor& tensor) {
  require(tensor.defined(), "cannot write '", path, "': the tensor is undefined");
  const std::string descr = descr_of(tensor.dtype());
  require(!descr.empty(), "cannot write '", path, "': .npy has no type ", name_of(tensor.dtype()));
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (";
  for (const int64_t size : tensor.shape()) header += std::to_string(size) + ", ";
  header += "), }";
  constexpr size_t kPrefix = kMagic.size() + 2 + 2;
  header.resize((kPrefix + header.size() + 1 + 63) / 64 * 64 - kPrefix, ' ');
  header.back() = '\n';
  const auto length = static_cast<uint16_t>(header.size());

  AtomicFile file(path);
  file.write(kMagic.data(), kMagic.size());
  file.write("\x01\x00", 2);
  file.write(&length, sizeof length);
  file.write(header.data(), header.size());
  const Tensor dense = tensor.contiguous();
  file.write(dense.raw(), static_cast<size_t>(dense.bytes()));
  file.commit();
}

}  // namespace fovea::io
