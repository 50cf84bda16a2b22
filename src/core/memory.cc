// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "fovea/core/error.h"

namespace fovea::memory {
namespace {
std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};
std::atomic<bool> poison{false};
}  // namespace

std::shared_ptr<void> allocate(int64_t bytes) {
  FOVEA_ASSERT(bytes >= 0);
  const size_t rounded =
      (static_cast<size_t>(std::max<int64_t>(bytes, 1)) + kAlignment - 1) / kAlignment * kAlignment;
  void* block = std::aligned_alloc(kAlignment, rounded);
  if (block == nullptr)
    throw Error("out of memory: " + std::to_string(bytes) + " bytes were refused", ErrorCode::unsupported);
  if (poison.load(std::memory_order_relaxed)) std::memset(block, 0xFF, rounded);
  const int64_t now = current.fetch_add(bytes) + bytes;
  int64_t seen = peak.load();
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {
  }
  return {block, [bytes](void* p) {
            std::free(p);
            current.fetch_sub(bytes);
          }};
}

int64_t current_bytes() { return current.load(); }
int64_t peak_bytes() { return peak.load(); }
void reset_peak() { peak.store(current.load()); }
void set_poison(bool on) { poison.store(on); }

}  // namespace fovea::memory
