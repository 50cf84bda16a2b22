// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "fovea/cache/kv_cache.h"
#include "fovea/core/options.h"

namespace fovea::cache {

/// Sinks and a window: row a keeps key j when j < sink or a - j < recent.
struct StreamingOptions {
  int64_t sink = 64;
  int64_t recent = 256;

  static constexpr auto fields() {
    return options::list(
        options::field(&StreamingOptions::sink, "sink", "first tokens kept", options::between(0, 1 << 30)),
        options::field(&StreamingOptions::recent, "recent", "latest tokens kept, the newest included",
                       options::between(1, 1 << 30)));
  }
};

/// Which tokens are kept, and in which slot of the storage each lies. Slots 0 .. held()-1 are always full.
class Retention {
 public:
  /// Everything: slot = position.
  Retention() = default;
  /// The sinks, then a ring of `recent` slots that the newest token overwrites.
  explicit Retention(const StreamingOptions& options) : streaming_(options) {}
  /// From a recipe; throws Error for an unknown name or option.
  static Retention make(const PolicySpec& spec);

  bool keeps_all() const { return !streaming_; }
  int64_t held(int64_t length) const;
  int64_t slot_of(int64_t position) const;

  /// Consecutive tokens that go to consecutive slots.
  struct Run {
    int64_t token, count, slot;
  };
  struct Runs {
    std::array<Run, 3> runs;
    size_t count = 0;
    const Run* begin() const { return runs.data(); }
    const Run* end() const { return runs.data() + count; }
  };
  /// Where tokens 0 .. count-1 of a block at position `length` go; those that would be dropped at once are
  /// left out.
  Runs place(int64_t length, int64_t count) const;

  /// Are all tokens that a sequence of `shorter` tokens keeps still held after `length`?
  bool can_truncate(int64_t length, int64_t shorter) const;

 private:
  std::optional<StreamingOptions> streaming_;
};

}  // namespace fovea::cache
