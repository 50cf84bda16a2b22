// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

/// Counted, 64-byte aligned allocation: tensors and kernel scratch both come from here, so that the peak of
/// an operator can be reported (`fovea run --stats`).
namespace fovea::memory {

inline constexpr size_t kAlignment = 64;

/// Uninitialised. Up to 64 MB of freed large blocks (from 4 MB) are kept for the next call of the same size.
/// Throws Error when the system has no such block.
std::shared_ptr<void> allocate(int64_t bytes);

/// Bytes held now, and the largest value since the last reset.
int64_t current_bytes();
int64_t peak_bytes();
void reset_peak();

/// While set, fresh blocks are filled with 0xFF bytes (NaN in every float type): tests run with this on, so
/// that a kernel that reads what it never wrote is seen.
void set_poison(bool on);

/// A typed uninitialised array. Kernels keep one per worker and reuse it across tiles.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { reserve(count); }

  /// Grows to at least `count` elements; the contents are lost when it grows.
  void reserve(int64_t count) {
    if (count <= count_) return;
    block_.reset();
    block_ = allocate(count * static_cast<int64_t>(sizeof(T)));
    count_ = count;
  }
  T* data() const { return static_cast<T*>(block_.get()); }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) const { return data()[i]; }

 private:
  std::shared_ptr<void> block_;
  int64_t count_ = 0;
};

}  // namespace fovea::memory
