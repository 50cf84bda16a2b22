// SPDX-License-Identifier: Apache-2.0
//
// File: "GGUF", u32 version, u64 tensors, u64 metadata entries; the entries (key, u32 type, value); the
// tensors (name, u32 axes, u64 sizes innermost first, u32 type, u64 offset into the data); padding; the data.
// A string is its u64 length and bytes, an array its u32 element type, u64 count and elements.
#include "fovea/io/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"
#include "fovea/io/checks.h"
#include "fovea/io/file.h"
#include "fovea/io/gguf_blocks.h"

namespace fovea::io {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little endian");

// Types by their number in the file; an empty name is a number never given or withdrawn.
constexpr std::string_view kTypeNames[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4"};

enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
constexpr uint32_t kValueTypes = 13;

// Bytes that one value of the type takes at least.
size_t smallest_size(ValueType type) {
  constexpr size_t kSizes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kSizes[static_cast<size_t>(type)];
}

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  template <typename T>
  T take(std::string_view what) {
    T value;
    std::memcpy(&value, take_bytes(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string string(std::string_view what) {
    const auto length = take<uint64_t>(what);
    const auto text = take_bytes(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  /// A count of things that take at least `size` bytes each: refused before anything is allocated for them.
  uint64_t count(std::string_view what, size_t size) {
    const auto value = take<uint64_t>(what);
    require(value <= remaining() / size, file_, ": ", what, ": a count of ", value, " does not fit in the ",
            remaining(), " bytes that follow");
    return value;
  }

  ValueType value_type(std::string_view what) {
    const auto type = take<uint32_t>(what);
    require(type < kValueTypes, file_, ": ", what, ": ", type, " is not a value type");
    return static_cast<ValueType>(type);
  }

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }
  const std::string& file() const { return file_; }

 private:
  std::span<const std::byte> take_bytes(uint64_t size, std::string_view what) {
    require(size <= remaining(), file_, ": ", what, ": the file ends ", size - std::min(size, remaining()),
            " bytes too early");
    const auto result = bytes_.subspan(position_, size);
    position_ += size;
    return result;
  }

  std::span<const std::byte> bytes_;
  std::string file_;
  size_t position_ = 0;
};

int64_t take_integer(Reader& reader, ValueType type, std::string_view what) {
  switch (type) {
    case ValueType::u8:
      return reader.take<uint8_t>(what);
    case ValueType::i8:
      return reader.take<int8_t>(what);
    case ValueType::u16:
      return reader.take<uint16_t>(what);
    case ValueType::i16:
      return reader.take<int16_t>(what);
    case ValueType::u32:
      return reader.take<uint32_t>(what);
    case ValueType::i32:
      return reader.take<int32_t>(what);
    case ValueType::i64:
      return reader.take<int64_t>(what);
    default: {
      const auto value = reader.take<uint64_t>(what);
      require(value <= uint64_t{std::numeric_limits<int64_t>::max()}, reader.file(), ": ", what, ": ", value,
              " is too large");
      return static_cast<int64_t>(value);
    }
  }
}

double take_fraction(Reader& reader, ValueType type, std::string_view what) {
  return type == ValueType::f32 ? double{reader.take<float>(what)} : reader.take<double>(what);
}

template <typename T, typename Take>
GgufArray take_elements(uint64_t count, const Take& take) {
  std::vector<T> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) values.push_back(take());
  return values;
}

GgufArray take_array(Reader& reader, std::string_view what) {
  const ValueType type = reader.value_type(what);
  require(type != ValueType::array, reader.file(), ": ", what, ": arrays of arrays are not supported");
  const uint64_t count = reader.count(what, smallest_size(type));
  switch (type) {
    case ValueType::string:
      return take_elements<std::string>(count, [&] { return reader.string(what); });
    case ValueType::boolean:
      return take_elements<bool>(count, [&] { return reader.take<uint8_t>(what) != 0; });
    case ValueType::f32:
    case ValueType::f64:
      return take_elements<double>(count, [&] { return take_fraction(reader, type, what); });
    default:
      return take_elements<int64_t>(count, [&] { return take_integer(reader, type, what); });
  }
}

GgufValue take_value(Reader& reader, std::string_view what) {
  const ValueType type = reader.value_type(what);
  switch (type) {
    case ValueType::string:
      return reader.string(what);
    case ValueType::boolean:
      return reader.take<uint8_t>(what) != 0;
    case ValueType::f32:
    case ValueType::f64:
      return take_fraction(reader, type, what);
    case ValueType::array:
      return take_array(reader, what);
    default:
      return take_integer(reader, type, what);
  }
}

GgufType take_tensor_type(Reader& reader, const std::string& what) {
  const auto number = reader.take<uint32_t>(what);
  const std::string_view name = number < std::size(kTypeNames) ? kTypeNames[number] : std::string_view();
  for (auto type = GgufType::f32; type <= GgufType::i64; type = GgufType(int(type) + 1))
    if (layout_of(type).name == name) return type;
  throw Error(reader.file() + ": " + what + ": type " +
                  (name.empty() ? std::to_string(number) : std::string(name)) + " is not supported",
              ErrorCode::unsupported);
}

// A tensor's description; its bytes are found once the data's place is known.
struct Described {
  GgufTensor tensor;
  uint64_t offset = 0, size = 0;
};

Described take_tensor(Reader& reader) {
  constexpr uint32_t kMostAxes = 4;
  Described result;
  GgufTensor& tensor = result.tensor;
  tensor.name = reader.string("a tensor's name");
  const std::string what = "tensor " + quote(tensor.name);
  const auto axes = reader.take<uint32_t>(what);
  require(axes <= kMostAxes, reader.file(), ": ", what, ": ", axes, " axes exceed the limit of ", kMostAxes);
  std::array<int64_t, kMostAxes> sizes{};
  for (uint32_t axis = axes; axis-- > 0;) sizes[axis] = take_integer(reader, ValueType::u64, what);
  tensor.shape = Shape(std::span<const int64_t>(sizes.data(), axes));
  tensor.type = take_tensor_type(reader, what);
  result.offset = reader.take<uint64_t>(what);

  const GgufLayout& layout = layout_of(tensor.type);
  const int64_t columns = axes == 0 ? 1 : tensor.shape[tensor.shape.rank() - 1];
  require(columns % layout.block == 0, reader.file(), ": ", what, ": rows of ", columns,
          " values are not whole blocks of ", layout.name, " (", layout.block, " values)");
  const std::optional<int64_t> bytes = byte_count(tensor.shape, layout.bytes, layout.block);
  require(bytes.has_value(), reader.file(), ": ", what, ": shape ", tensor.shape.to_string(),
          " is too large");
  result.size = static_cast<uint64_t>(*bytes);
  return result;
}

// Each tensor's bytes must lie within the data, on the alignment, and not share bytes with another's.
void place_tensors(std::vector<Described>& described, std::span<const std::byte> data, uint64_t alignment,
                   const std::string& file) {
  std::vector<const Described*> sorted;
  for (Described& item : described) {
    const std::string place = file + ": tensor " + quote(item.tensor.name);
    require(item.offset % alignment == 0, place, ": offset ", item.offset,
            " is not a multiple of the alignment ", alignment);
    require(item.offset <= data.size() && item.size <= data.size() - item.offset, place, ": ", item.size,
            " bytes at offset ", item.offset, " end beyond the ", data.size(), " bytes of data");
    item.tensor.bytes = data.subspan(item.offset, item.size);
    if (item.size > 0) sorted.push_back(&item);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Described* a, const Described* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < sorted.size(); ++i)
    require(sorted[i]->offset >= sorted[i - 1]->offset + sorted[i - 1]->size, file, ": tensor ",
            quote(sorted[i]->tensor.name), " overlaps tensor ", quote(sorted[i - 1]->tensor.name));
}

std::optional<DType> plain_type(GgufType type) {
  switch (type) {
    case GgufType::f32:
      return DType::f32;
    case GgufType::f16:
      return DType::f16;
    case GgufType::bf16:
      return DType::bf16;
    case GgufType::i8:
      return DType::i8;
    case GgufType::i32:
      return DType::i32;
    case GgufType::i64:
      return DType::i64;
    default:
      return std::nullopt;
  }
}

}  // namespace

GgufFile GgufFile::read(const std::string& path) {
  const MappedFile file = map_file(path);
  return parse(file.bytes, file.owner, path);
}

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                         const std::string& name) {
  GgufFile result;
  result.owner_ = std::move(owner);
  result.file_ = "GGUF file '" + name + "'";
  const std::string& file = result.file_;
  Reader reader(bytes, file);
  require(bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0, file,
          ": it does not begin with \"GGUF\"");
  reader.take<uint32_t>("header");
  const auto version = reader.take<uint32_t>("version");
  require((version & 0xffff) != 0, file, ": it is big endian, which is not supported");
  require(version == 2 || version == 3, file, ": version ", version, " is not supported, only 2 and 3 are");
  constexpr size_t kSmallestEntry = 8 + 4 + 1, kSmallestTensor = 8 + 4 + 4 + 8;
  const uint64_t tensors = reader.count("number of tensors", kSmallestTensor);
  const uint64_t entries = reader.count("number of metadata entries", kSmallestEntry);

  for (uint64_t i = 0; i < entries; ++i) {
    std::string key = reader.string("a metadata key");
    require(!result.metadata_.contains(key), file, ": the key ", quote(key), " stands twice");
    GgufValue value = take_value(reader, "key " + quote(key));
    result.metadata_.emplace(std::move(key), std::move(value));
  }

  std::vector<Described> described;
  described.reserve(tensors);
  for (uint64_t i = 0; i < tensors; ++i) {
    described.push_back(take_tensor(reader));
    const bool fresh = result.index_.emplace(described.back().tensor.name, i).second;
    require(fresh, file, ": two tensors are called ", quote(described.back().tensor.name));
  }

  const int64_t alignment = result.integer("general.alignment", 32);
  require(alignment > 0 && alignment <= 1 << 20 && std::has_single_bit(static_cast<uint64_t>(alignment)),
          file, ": alignment ", alignment, " is not a power of two up to 2^20");
  const auto unit = static_cast<uint64_t>(alignment);
  const size_t start = std::min((reader.position() + unit - 1) / unit * unit, bytes.size());
  place_tensors(described, bytes.subspan(start), unit, file);
  result.tensors_.reserve(tensors);
  for (Described& item : described) result.tensors_.push_back(std::move(item.tensor));
  return result;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

template <typename T>
T GgufFile::value(std::string_view key, const std::optional<T>& fallback, std::string_view kind) const {
  const GgufValue* found = find(key);
  if (found == nullptr) {
    require(fallback.has_value(), file_, ": the key ", quote(key), " is missing");
    return *fallback;
  }
  if (const T* held = std::get_if<T>(found)) return *held;
  if constexpr (std::is_same_v<T, double>)
    if (const int64_t* held = std::get_if<int64_t>(found)) return static_cast<double>(*held);
  throw Error(file_ + ": the key " + quote(key) + " does not hold " + std::string(kind));
}

int64_t GgufFile::integer(std::string_view key, std::optional<int64_t> fallback) const {
  return value(key, fallback, "an integer");
}
double GgufFile::number(std::string_view key, std::optional<double> fallback) const {
  return value(key, fallback, "a number");
}
bool GgufFile::boolean(std::string_view key, std::optional<bool> fallback) const {
  return value(key, fallback, "true or false");
}
std::string GgufFile::string(std::string_view key, const std::optional<std::string>& fallback) const {
  return value(key, fallback, "a string");
}

const GgufTensor* GgufFile::tensor(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

Tensor GgufFile::dequantize(const GgufTensor& tensor) const {
  Tensor result = Tensor::empty(tensor.shape);
  dequantize_gguf(tensor.type, tensor.bytes.data(), result.size(), result.data<float>());
  return result;
}

Tensor GgufFile::view(const GgufTensor& tensor) const {
  const std::optional<DType> dtype = plain_type(tensor.type);
  require(dtype.has_value(), file_, ": tensor ", quote(tensor.name), " of type ", layout_of(tensor.type).name,
          " has no plain view");
  const std::byte* at = tensor.bytes.data();
  if (at != nullptr && reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(size_of(*dtype)) == 0)
    return Tensor::wrap(const_cast<std::byte*>(at), tensor.shape, *dtype, owner_);
  Tensor copy = Tensor::empty(tensor.shape, *dtype);
  if (at != nullptr) std::memcpy(copy.raw(), at, tensor.bytes.size());
  return copy;
}

kernels::AffineWeight GgufFile::affine(const GgufTensor& tensor) const {
  const GgufLayout& layout = layout_of(tensor.type);
  require(layout.bits != 0, file_, ": tensor ", quote(tensor.name), " of type ", layout.name,
          " is not quantised");
  require(tensor.shape.rank() == 2, file_, ": tensor ", quote(tensor.name), " of shape ",
          tensor.shape.to_string(), " is not a matrix");
  kernels::AffineWeight weight;
  weight.rows = tensor.shape[0];
  weight.columns = tensor.shape[1];
  weight.bits = layout.bits;
  weight.group = layout.group;
  const int64_t codes_per_byte = 8 / layout.bits;
  weight.codes = Tensor::empty({weight.rows, weight.columns / codes_per_byte}, DType::u8);
  weight.scale = Tensor::empty({weight.rows, weight.columns / layout.group});
  weight.offset = Tensor::empty({weight.rows, weight.columns / layout.group});
  auto* codes = weight.codes.data<uint8_t>();
  float* scale = weight.scale.data<float>();
  float* offset = weight.offset.data<float>();
  const int64_t blocks_per_row = weight.columns / layout.block, groups = layout.block / layout.group;
  // A file may name any number of rows without columns: nothing lies there to visit.
  const int64_t rows = blocks_per_row > 0 ? weight.rows : 0;
  parallel_for(rows, [&](int64_t row, int) {
    GgufBlock block;
    for (int64_t i = row * blocks_per_row; i < (row + 1) * blocks_per_row; ++i) {
      unpack_block(tensor.type, tensor.bytes.data() + i * layout.bytes, block);
      // scale * (code - bias) + minimum = scale * code + (minimum - bias * scale)
      for (int64_t g = 0; g < groups; ++g) {
        scale[i * groups + g] = block.scale[g];
        offset[i * groups + g] = block.minimum[g] - static_cast<float>(layout.bias) * block.scale[g];
      }
      uint8_t* out = codes + i * layout.block / codes_per_byte;
      if (layout.bits == 8)
        std::copy_n(block.codes, layout.block, out);
      else
        for (int64_t j = 0; j < layout.block / 2; ++j)
          out[j] = static_cast<uint8_t>(block.codes[2 * j] | block.codes[2 * j + 1] << 4);
    }
  });
  return weight;
}

}  // namespace fovea::io
