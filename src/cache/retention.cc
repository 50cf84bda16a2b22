// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/retention.h"

#include <algorithm>

#include "fovea/cache/policies.h"

namespace fovea::cache {

Retention Retention::make(const PolicySpec& spec) {
  const std::string& name = policy_of(PolicyKind::retention, spec.name).name;
  if (name == "streaming") return Retention(options::from_pairs<StreamingOptions>(spec.options, name));
  options::from_pairs<options::None>(spec.options, name);
  return {};
}

int64_t Retention::held(int64_t length) const {
  return streaming_ ? std::min(length, streaming_->sink + streaming_->recent) : length;
}

int64_t Retention::slot_of(int64_t position) const {
  if (!streaming_ || position < streaming_->sink) return position;
  return streaming_->sink + (position - streaming_->sink) % streaming_->recent;
}

Retention::Runs Retention::place(int64_t length, int64_t count) const {
  Runs result;
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin < end) result.runs[result.count++] = {begin - length, end - begin, slot_of(begin)};
  };
  const int64_t end = length + count;
  if (!streaming_) {
    add(length, end);
    return result;
  }
  const int64_t sink = streaming_->sink, recent = streaming_->recent;
  add(length, std::min(end, sink));
  // At most one turn of the ring, so it wraps at most once.
  const int64_t begin = std::max({length, sink, end - recent});
  const int64_t turn = sink + ((begin - sink) / recent + 1) * recent;
  add(begin, std::min(end, turn));
  add(std::max(begin, turn), end);
  return result;
}

bool Retention::can_truncate(int64_t length, int64_t shorter) const {
  return !streaming_ || shorter == length || shorter <= streaming_->sink ||
         length <= streaming_->sink + streaming_->recent;
}

}  // namespace fovea::cache
