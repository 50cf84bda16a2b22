// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/coded_storage.h"

#include <algorithm>

#include "fovea/core/thread_pool.h"

namespace fovea::cache {
namespace {

constexpr int64_t kTokensPerTask = 64;  // of a read of many tokens

}  // namespace

void CodedStorage::read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const {
  const int64_t chunks = (count + kTokensPerTask - 1) / kTokensPerTask, group = heads_together();
  parallel_for(heads_ / group * chunks, [&](int64_t task, int) {
    const int64_t head = task / chunks * group, first = task % chunks * kTokensPerTask,
                  last = std::min(count, first + kTokensPerTask);
    const Tensor keys = Tensor::empty({last - first, group, dim_});
    const Tensor values = v.defined() ? Tensor::empty({last - first, group, dim_v_}) : Tensor();
    decode_rows(head, slot + first, last - first, keys.data<float>(),
                v.defined() ? values.data<float>() : nullptr);
    const auto part = [&](const Tensor& x) { return x.slice(0, head, head + group).slice(1, first, last); };
    part(k).copy_from(keys.transpose(0, 1));
    if (!v.defined()) return;
    restore_values(values);
    part(v).copy_from(values.transpose(0, 1));
  });
}

kernels::AttentionResult CodedStorage::attend(const Tensor& q, const Tensor& pages, int64_t page_size) {
  const int64_t groups = heads_ / heads_together(), per_group = q.dim(1) / groups;
  int64_t tokens = groups * slots();
  if (pages.defined()) {
    tokens = 0;
    for (int64_t group = 0; group < groups; ++group) {
      union_of_pages(pages, group * per_group, per_group, read_pages_);
      tokens += tokens_of_pages(read_pages_, page_size, slots());
    }
  }
  bytes_read_ = tokens * token_bytes() / groups;

  kernels::CodedKv kv{.heads = heads_,
                      .dim = dim_,
                      .dim_v = dim_v_,
                      .length = slots(),
                      .heads_together = heads_together(),
                      .read = [this](int64_t head, int64_t slot, int64_t count, float* k, float* v) {
                        decode_rows(head, slot, count, k, v);
                      }};
  view_rows(kv);
  auto result = kernels::decode(q, kv, pages, page_size);
  restore_values(result.o);
  return result;
}

}  // namespace fovea::cache
