// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "fovea/cache/growing_rows.h"
#include "fovea/cache/quest.h"
#include "fovea/cache/storage.h"

namespace fovea::cache {

/// Quest in a cache: the bounds are over the keys as they are held, whatever holds them.
struct QuestSelectionOptions : QuestOptions {
  int64_t dense_layers = 2;

  static constexpr auto fields() {
    return std::tuple_cat(
        QuestOptions::fields(),
        options::list(options::field(&QuestSelectionOptions::dense_layers, "dense_layers",
                                     "first layers, which read everything", options::at_least(0))));
  }
};

/// What a query reads, as pages of slots.
class PageSelection {
 public:
  /// nullptr where everything is read. Throws Error for an unknown name or option.
  static std::unique_ptr<PageSelection> make(const PolicySpec& spec, const CacheShape& shape,
                                             const Storage& storage);
  PageSelection(const QuestOptions& options, const Storage& storage);

  int64_t page_size() const { return options_.page_size; }
  /// Slots slot .. slot+count-1 of the storage have new contents.
  void written(const Storage& storage, int64_t slot, int64_t count);
  /// The storage has been cut to its present slots.
  void truncated(const Storage& storage);
  /// Pages i32 [1,Hq,1,R] for q [1,Hq,1,D], ascending, -1 at the end; undefined when all are read. `newest`
  /// is the slot of the newest token.
  Tensor select(const Tensor& q, int64_t newest);

  /// Of the bounds.
  int64_t bytes() const { return low_.bytes() + high_.bytes(); }
  int64_t bytes_read() const { return bytes_read_; }
  void save(ByteWriter& out) const;
  /// For a storage that has just been loaded.
  void load(ByteReader& in, const Storage& storage);

 private:
  QuestOptions options_;
  DType type_;
  int64_t slots_ = 0;  // how many are covered by the bounds
  GrowingRows low_, high_;
  int64_t bytes_read_ = 0;
};

}  // namespace fovea::cache
