// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/byte_stream.h"

#include <istream>
#include <ostream>

#include "fovea/core/error.h"

namespace fovea::cache {

void Checksum::add(const void* data, int64_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  for (int64_t i = 0; i < bytes; ++i) value_ = (value_ ^ p[i]) * 0x100000001b3u;
}

void ByteWriter::raw(const void* data, int64_t count) {
  out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(count));
  if (!out_) throw Error("cache: the stream refused to take the saved cache", ErrorCode::io);
}

void ByteWriter::bytes(const void* data, int64_t count) {
  raw(data, count);
  checksum_.add(data, count);
}

void ByteWriter::text(const std::string& text) {
  value(static_cast<int64_t>(text.size()));
  bytes(text.data(), static_cast<int64_t>(text.size()));
}

void ByteWriter::finish() {
  const uint64_t sum = checksum_.value();
  raw(&sum, sizeof(sum));
}

void ByteReader::raw(void* data, int64_t count) {
  in_.read(static_cast<char*>(data), static_cast<std::streamsize>(count));
  require(in_.good() && in_.gcount() == count, "cache: the saved cache ends too early");
}

void ByteReader::bytes(void* data, int64_t count) {
  raw(data, count);
  checksum_.add(data, count);
}

std::string ByteReader::text(int64_t limit) {
  const auto count = value<int64_t>();
  require(count >= 0 && count <= limit, "cache: the saved cache has a text of ", count, " bytes");
  std::string result(static_cast<size_t>(count), '\0');
  bytes(result.data(), count);
  return result;
}

void ByteReader::finish() {
  uint64_t sum = 0;
  raw(&sum, sizeof(sum));
  require(sum == checksum_.value(), "cache: the saved cache is damaged (its checksum differs)");
}

}  // namespace fovea::cache
