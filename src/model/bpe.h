// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <unordered_map>
#include <vector>

namespace fovea::model {

/// A run of text that is one token so far.
struct Symbol {
  int32_t id = -1;  ///< -1: no token has this text
  uint32_t begin = 0, length = 0;
  int32_t previous = -1, next = -1;
};

/// Two neighbours that may become one; the smallest order is merged first, and among equals the leftmost.
struct Merge {
  double order = 0;
  int32_t id = -1;
};

/// Merge rules of byte-pair encoding: a pair of tokens, and what it becomes.
class MergeTable {
 public:
  /// The first rule for a pair stands.
  void add(int32_t left, int32_t right, Merge merge) { rules_.emplace(key(left, right), merge); }
  std::optional<Merge> find(int32_t left, int32_t right) const {
    const auto it = rules_.find(key(left, right));
    return it == rules_.end() ? std::nullopt : std::optional(it->second);
  }
  bool empty() const { return rules_.empty(); }
  void reserve(size_t count) { rules_.reserve(count); }

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  std::unordered_map<uint64_t, Merge> rules_;
};

/// Merges neighbours in the order of their rules until no rule applies: O(n log n) however long the word.
/// Reused from word to word for its memory.
class Merger {
 public:
  void clear() { symbols_.clear(); }
  void push(int32_t id, uint32_t begin, uint32_t length) {
    const auto at = static_cast<int32_t>(symbols_.size());
    if (at > 0) symbols_.back().next = at;
    symbols_.push_back({id, begin, length, at - 1, -1});
  }

  /// `rule(left, right)` gives the Merge of two symbols, or nothing.
  template <typename Rule>
  void run(const Rule& rule) {
    const auto offer = [&](int32_t left) {
      if (left < 0 || at(left).next < 0) return;
      const Symbol& a = at(left);
      const Symbol& b = at(a.next);
      if (const std::optional<Merge> merge = rule(a, b)) queue_.push({*merge, left, a.length + b.length});
    };
    for (int32_t i = 0; i < static_cast<int32_t>(symbols_.size()); ++i) offer(i);
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      Symbol& left = at(best.left);
      // Either side may have grown, or the left been swallowed, since this was offered.
      if (left.length == 0 || left.next < 0 || left.length + at(left.next).length != best.length) continue;
      Symbol& right = at(left.next);
      left.id = best.merge.id;
      left.length = best.length;
      left.next = right.next;
      right.length = 0;
      if (left.next >= 0) at(left.next).previous = best.left;
      offer(left.previous);
      offer(best.left);
    }
  }

  /// Calls visit(symbol) for what is left, in order.
  template <typename Visit>
  void visit(const Visit& visit) const {
    if (symbols_.empty()) return;
    for (int32_t i = 0; i >= 0; i = symbols_[static_cast<size_t>(i)].next)
      visit(symbols_[static_cast<size_t>(i)]);
  }

 private:
  struct Candidate {
    Merge merge;
    int32_t left;
    uint32_t length;
    bool operator<(const Candidate& other) const {  // the queue's top is its largest
      return merge.order != other.merge.order ? merge.order > other.merge.order : left > other.left;
    }
  };
  Symbol& at(int32_t i) { return symbols_[static_cast<size_t>(i)]; }

  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace fovea::model
