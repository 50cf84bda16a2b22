// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <system_error>

#include "fovea/core/error.h"

namespace fovea::io {
namespace {

[[noreturn]] void fail(std::string_view action, const std::string& path, std::string_view reason,
                       ErrorCode code = ErrorCode::io) {
  throw Error("cannot " + std::string(action) + " '" + path + "': " + std::string(reason), code);
}

[[noreturn]] void fail_with(std::string_view action, const std::string& path, int error) {
  fail(action, path, std::generic_category().message(error),
       error == ENOENT || error == ENOTDIR ? ErrorCode::not_found : ErrorCode::io);
}

// open() and the mapping outlive each other in no order: the descriptor is closed as soon as the map exists.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

// A link is followed, so that the file it names is replaced and not the link.
std::string resolved(const std::string& path) {
  char* real = ::realpath(path.c_str(), nullptr);
  if (real == nullptr) return path;
  std::string result = real;
  std::free(real);
  return result;
}

}  // namespace

MappedFile map_file(const std::string& path) {
  // Without O_NONBLOCK a named pipe would block here before it can be refused.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.value() < 0) fail_with("read", path, errno);
  struct stat status {};
  if (::fstat(file.value(), &status) != 0) fail_with("read", path, errno);
  if (S_ISDIR(status.st_mode)) fail("read", path, "it is a directory");
  if (!S_ISREG(status.st_mode)) fail("read", path, "it is not a regular file");
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return {};
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value(), 0);
  if (address == MAP_FAILED) fail_with("map", path, errno);
  return {{static_cast<const std::byte*>(address), size},
          std::shared_ptr<const void>(address, [size](void* start) { ::munmap(start, size); })};
}

std::string read_text(const std::string& path, size_t limit) {
  const MappedFile file = map_file(path);
  if (file.bytes.size() > limit)
    fail("read", path,
         "it has " + std::to_string(file.bytes.size()) + " bytes, more than the limit of " +
             std::to_string(limit),
         ErrorCode::invalid_argument);
  return {reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()};
}

AtomicFile::AtomicFile(std::string path) : path_(resolved(path)) {
  if (path_.empty()) fail("write", path_, "the path is empty");
  struct stat status {};
  const bool exists = ::stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) fail("write", path_, "it is a directory");
  if (exists && !S_ISREG(status.st_mode)) fail("write", path_, "it is not a regular file");
  // rename() would replace a file that its owner protected.
  if (exists && ::access(path_.c_str(), W_OK) != 0) fail_with("write", path_, errno);

  static std::atomic<unsigned> serial{0};
  do {
    temporary_ = path_ + ".fovea-tmp-" + std::to_string(::getpid()) + "-" + std::to_string(serial++);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) fail_with("write", path_, errno);
  if (exists) static_cast<void>(::fchmod(descriptor_, status.st_mode & 07777));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  FOVEA_ASSERT(descriptor_ >= 0);
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, at, std::min<size_t>(bytes, SSIZE_MAX));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_with("write", path_, errno);
    at += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  FOVEA_ASSERT(descriptor_ >= 0);
  // Some file systems report a full disk only here.
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) fail_with("write", path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with("write", path_, errno);
  temporary_.clear();
}

}  // namespace fovea::io
