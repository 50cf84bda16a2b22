// SPDX-License-Identifier: Apache-2.0
//
// File: u64 length of the header, the header (JSON, padded with spaces), then the bytes of all tensors, which
// must cover the rest of the file without holes or overlaps.
#include "fovea/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <vector>

#include "fovea/core/error.h"
#include "fovea/io/checks.h"
#include "fovea/io/file.h"

namespace fovea::io {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor files are little endian");

constexpr uint64_t kLargestHeader = 100'000'000;
// Real files have some thousands; each costs a few hundred bytes here.
constexpr size_t kMostTensors = 1 << 16;
constexpr std::string_view kMetadata = "__metadata__";

std::optional<DType> dtype_of(std::string_view name) {
  if (name == "F32") return DType::f32;
  if (name == "F16") return DType::f16;
  if (name == "BF16") return DType::bf16;
  if (name == "I8") return DType::i8;
  if (name == "U8" || name == "BOOL") return DType::u8;
  if (name == "I32") return DType::i32;
  if (name == "I64") return DType::i64;
  return std::nullopt;
}

std::string format_name(DType dtype) {
  std::string name(name_of(dtype));
  std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'a' ? c - 'a' + 'A' : c; });
  return name;
}

struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<Shape> shape;
  std::vector<uint64_t> offsets;
  bool has_offsets = false;
};

// Takes the header as a stream of events, so that a hostile one can neither nest deeply nor build a large
// tree.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(std::string file) : file_(std::move(file)) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_float(double, const std::string&) override { return unexpected("a fraction"); }
  bool binary(binary_t&) override { return unexpected("binary data"); }
  bool number_integer(int64_t value) override {
    return unexpected("the number " + std::to_string(value) + " (sizes and offsets are never negative)");
  }

  bool number_unsigned(uint64_t value) override {
    if (depth_ != 3) return unexpected("a number");
    Entry& entry = entries.back();
    if (field_ == "shape") {
      check(value <= static_cast<uint64_t>(INT64_MAX), "the size " + std::to_string(value) + " is too large");
      check(entry.shape->rank() < Shape::kMaxRank,
            "it has more than " + std::to_string(Shape::kMaxRank) + " axes");
      entry.shape->push_back(static_cast<int64_t>(value));
    } else {
      check(entry.offsets.size() < 2, "data_offsets holds more than two numbers");
      entry.offsets.push_back(value);
    }
    return true;
  }

  bool string(std::string& value) override {
    if (depth_ != 2) return unexpected("a string");
    if (in_metadata_) {
      metadata[field_] = std::move(value);
      return true;
    }
    if (field_ != "dtype") return unexpected("a string for " + field_);
    entries.back().dtype = dtype_of(value);
    check(entries.back().dtype.has_value(),
          "type " + quote(value) + " is not one of F32, F16, BF16, I8, U8, BOOL, I32, I64");
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ >= 2) return unexpected("an object");
    ++depth_;
    return true;
  }

  bool end_object() override {
    if (--depth_ == 1 && !in_metadata_) {
      const Entry& entry = entries.back();
      check(entry.dtype.has_value(), "dtype is missing");
      check(entry.shape.has_value(), "shape is missing");
      check(entry.offsets.size() == 2, "data_offsets is missing or has fewer than two numbers");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || field_ == "dtype") return unexpected("an array");
    ++depth_;
    if (field_ == "shape") entries.back().shape = Shape();
    if (field_ == "data_offsets") entries.back().has_offsets = true;
    return true;
  }

  bool end_array() override {
    --depth_;
    return true;
  }

  bool key(std::string& value) override {
    if (depth_ == 1) {
      in_metadata_ = value == kMetadata;
      check(names_.insert(value).second, "the name " + quote(value) + " stands twice in the header");
      check(names_.size() <= kMostTensors, "it has more than " + std::to_string(kMostTensors) + " tensors");
      if (!in_metadata_) entries.push_back({std::move(value), {}, {}, {}, false});
      return true;
    }
    field_ = std::move(value);
    if (in_metadata_) {
      check(!metadata.contains(field_), "the metadata key " + quote(field_) + " stands twice");
      return true;
    }
    const Entry& entry = entries.back();
    const bool known = field_ == "dtype" || field_ == "shape" || field_ == "data_offsets";
    check(known, "the unknown field " + quote(field_));
    const bool repeated = field_ == "dtype"   ? entry.dtype.has_value()
                          : field_ == "shape" ? entry.shape.has_value()
                                              : entry.has_offsets;
    check(!repeated, field_ + " stands twice");
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw Error(file_ + ": the header is not valid JSON at byte " + std::to_string(position));
  }

 private:
  void check(bool condition, const std::string& trouble) const {
    if (!condition) throw Error(place() + ": " + trouble);
  }

  bool unexpected(const std::string& what) const { throw Error(place() + ": unexpected " + what); }

  std::string place() const {
    if (depth_ < 2) return file_ + ": header";
    return file_ + (in_metadata_ ? ": " + std::string(kMetadata) : ": tensor " + quote(entries.back().name));
  }

  std::string file_, field_;
  std::set<std::string> names_;
  int depth_ = 0;
  bool in_metadata_ = false;
};

// The byte ranges must tile the data: sorted by begin, each starts where the one before ended.
void check_ranges(const std::vector<Entry>& entries, uint64_t data_bytes, const std::string& file) {
  std::vector<const Entry*> sorted;
  for (const Entry& entry : entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(),
            [](const Entry* a, const Entry* b) { return a->offsets < b->offsets; });
  uint64_t end = 0;
  for (const Entry* entry : sorted) {
    const std::string place = file + ": tensor " + quote(entry->name);
    const uint64_t first = entry->offsets[0], last = entry->offsets[1];
    require(first <= last, place, ": data_offsets [", first, ",", last, "] run backwards");
    require(last <= data_bytes, place, ": data_offsets [", first, ",", last, "] end beyond the ", data_bytes,
            " bytes of data");
    require(first >= end, place, ": data_offsets [", first, ",", last,
            "] overlap the tensor before, which ends at ", end);
    require(first == end, place, ": data_offsets [", first, ",", last, "] leave a hole after byte ", end);
    const std::optional<int64_t> bytes = byte_count(*entry->shape, size_of(*entry->dtype));
    require(bytes.has_value() && static_cast<uint64_t>(*bytes) == last - first, place, ": shape ",
            entry->shape->to_string(), " of ", format_name(*entry->dtype), " does not fill data_offsets [",
            first, ",", last, "]");
    end = last;
  }
  require(end == data_bytes, file, ": ", data_bytes - end,
          " bytes after the last tensor belong to no tensor");
}

}  // namespace

SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                  const std::string& name) {
  const std::string file = "safetensors file '" + name + "'";
  require(bytes.size() >= 8, file, ": ", bytes.size(), " bytes are too few for a header");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  require(length <= kLargestHeader, file, ": the header length ", length, " exceeds the limit of ",
          kLargestHeader, " bytes");
  require(length <= bytes.size() - 8, file, ": the header length ", length, " exceeds the ", bytes.size() - 8,
          " bytes that follow");
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  require(header.starts_with('{'), file, ": the header does not start with '{'");

  HeaderReader reader(file);
  nlohmann::json::sax_parse(header, &reader);
  const std::span<const std::byte> data = bytes.subspan(8 + length);
  check_ranges(reader.entries, data.size(), file);

  SafetensorsFile result;
  result.metadata = std::move(reader.metadata);
  for (Entry& entry : reader.entries) {
    const std::byte* at = data.data() + entry.offsets[0];
    const auto width = static_cast<uintptr_t>(size_of(*entry.dtype));
    Tensor tensor;
    if (reinterpret_cast<uintptr_t>(at) % width == 0) {
      tensor = Tensor::wrap(const_cast<std::byte*>(at), *entry.shape, *entry.dtype, owner);
    } else {
      tensor = Tensor::empty(*entry.shape, *entry.dtype);
      std::memcpy(tensor.raw(), at, static_cast<size_t>(tensor.bytes()));
    }
    result.tensors.set(std::move(entry.name), std::move(tensor));
  }
  return result;
}

SafetensorsFile read_safetensors(const std::string& path) {
  const MappedFile file = map_file(path);
  return parse_safetensors(file.bytes, file.owner, path);
}

void write_safetensors(const std::string& path, const Tensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Widest elements first, so that every tensor of the file lies aligned.
  std::vector<std::pair<std::string, Tensor>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return size_of(a.second.dtype()) > size_of(b.second.dtype());
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadata)] = metadata;
  for (const auto& [name, tensor] : tensors) header[name] = nullptr;
  int64_t offset = 0;
  for (const auto& [name, tensor] : order) {
    require(tensor.defined(), "cannot write '", path, "': tensor ", quote(name), " is undefined");
    require(name != kMetadata, "cannot write '", path, "': no tensor may be called ", kMetadata);
    require(header[name].is_null(), "cannot write '", path, "': two tensors are called ", quote(name));
    header[name] = {{"dtype", format_name(tensor.dtype())},
                    {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
                    {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error("cannot write '" + path + "': a tensor's name or the metadata is not valid UTF-8");
  }
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const uint64_t length = text.size();

  AtomicFile file(path);
  file.write(&length, sizeof length);
  file.write(text.data(), text.size());
  for (const auto& [name, tensor] : order) {
    const Tensor dense = tensor.contiguous();
    file.write(dense.raw(), static_cast<size_t>(dense.bytes()));
  }
  file.commit();
}

}  // namespace fovea::io
