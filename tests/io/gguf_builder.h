// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fovea/io/gguf.h"

namespace fovea::io {

/// The bytes of a GGUF file, put together field by field.
class GgufBuilder {
 public:
  template <typename T>
  GgufBuilder& add(T value) {
    const auto* at = reinterpret_cast<const char*>(&value);
    bytes_.append(at, sizeof value);
    return *this;
  }
  GgufBuilder& text(const std::string& value) {
    add(uint64_t{value.size()});
    bytes_ += value;
    return *this;
  }
  GgufBuilder& entry(const std::string& key, const std::string& value) {
    return text(key).add(uint32_t{8}).text(value);
  }
  GgufBuilder& entry(const std::string& key, uint32_t value) { return text(key).add(uint32_t{4}).add(value); }
  GgufBuilder& entry(const std::string& key, const std::vector<std::string>& values) {
    text(key).add(uint32_t{9}).add(uint32_t{8}).add(uint64_t{values.size()});
    for (const std::string& value : values) text(value);
    return *this;
  }
  /// Integers (type 5) or fractions (type 6).
  template <typename T>
  GgufBuilder& entry(const std::string& key, uint32_t type, const std::vector<T>& values) {
    text(key).add(uint32_t{9}).add(type).add(uint64_t{values.size()});
    for (const T value : values) add(value);
    return *this;
  }
  GgufBuilder& head(uint64_t tensors, uint64_t entries, uint32_t version = 3) {
    bytes_ += "GGUF";
    return add(version).add(tensors).add(entries);
  }
  GgufBuilder& tensor(const std::string& name, const std::vector<uint64_t>& sizes, uint32_t type,
                      uint64_t offset) {
    text(name).add(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) add(size);
    return add(type).add(offset);
  }
  GgufBuilder& data(size_t bytes) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + bytes, '\x01');
    return *this;
  }
  GgufFile parse() const {
    return GgufFile::parse(std::as_bytes(std::span(bytes_)), std::make_shared<std::string>(), "test");
  }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace fovea::io
