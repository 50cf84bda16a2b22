// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace fovea::io {

/// A file mapped read-only. Throws Error(not_found / io) for a missing file, a directory, or one that cannot
/// be read.
struct MappedFile {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};
MappedFile map_file(const std::string& path);

/// A file that appears under its name only when complete: bytes go to a temporary beside it, commit()
/// renames, and the destructor removes a temporary that was not committed.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, size_t bytes);
  void commit();

 private:
  std::string path_, temporary_;
  int descriptor_ = -1;
};

/// The whole of a small text file; throws as map_file does, and above `limit` bytes.
std::string read_text(const std::string& path, size_t limit = size_t{1} << 28);

}  // namespace fovea::io
