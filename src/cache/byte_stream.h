// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <type_traits>

namespace fovea::cache {

static_assert(std::endian::native == std::endian::little, "saved caches are little endian");

/// FNV-1a of a stream of bytes: catches truncation and damage, not malice.
class Checksum {
 public:
  void add(const void* data, int64_t bytes);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

/// Writes values and a checksum of all of them at the end. Throws Error(io) where the stream refuses.
class ByteWriter {
 public:
  explicit ByteWriter(std::ostream& out) : out_(out) {}
  void bytes(const void* data, int64_t count);
  template <typename T>
  void value(const T& x) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(&x, sizeof(T));
  }
  void text(const std::string& text);
  void finish();

 private:
  void raw(const void* data, int64_t count);
  std::ostream& out_;
  Checksum checksum_;
};

/// Reads what ByteWriter wrote; every short read, and a wrong checksum in `finish`, is an Error.
class ByteReader {
 public:
  explicit ByteReader(std::istream& in) : in_(in) {}
  void bytes(void* data, int64_t count);
  template <typename T>
  T value() {
    static_assert(std::is_trivially_copyable_v<T>);
    T x;
    bytes(&x, sizeof(T));
    return x;
  }
  /// Throws above `limit` bytes.
  std::string text(int64_t limit);
  void finish();

 private:
  void raw(void* data, int64_t count);
  std::istream& in_;
  Checksum checksum_;
};

}  // namespace fovea::cache
