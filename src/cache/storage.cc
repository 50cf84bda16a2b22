// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/storage.h"

#include <algorithm>

#include "fovea/cache/plain_storage.h"
#include "fovea/cache/policies.h"
#include "fovea/cache/rotatekv_storage.h"
#include "fovea/cache/rtn_storage.h"

namespace fovea::cache {

void union_of_pages(const Tensor& pages, int64_t first, int64_t count, std::vector<int32_t>& result) {
  result.clear();
  for (int64_t h = first; h < first + count; ++h) {
    const int32_t* of_head = &pages.at<int32_t>(0, h, 0, 0);
    for (int64_t r = 0; r < pages.dim(3) && of_head[r] >= 0; ++r) result.push_back(of_head[r]);
  }
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
}

int64_t tokens_of_pages(const std::vector<int32_t>& pages, int64_t page_size, int64_t slots) {
  int64_t tokens = 0;
  for (int64_t page : pages) tokens += std::min(page_size, slots - page * page_size);
  return tokens;
}

std::unique_ptr<Storage> make_storage(const PolicySpec& spec, int64_t heads, const CacheShape& shape) {
  const std::string& name = policy_of(PolicyKind::storage, spec.name).name;
  if (name == "rotatekv")
    return std::make_unique<RotateKvStorage>(options::from_pairs<RotateKvStorageOptions>(spec.options, name),
                                             heads, shape);
  if (name == "rtn")
    return std::make_unique<RtnStorage>(options::from_pairs<RtnStorageOptions>(spec.options, name), heads,
                                        shape.dim, shape.dim_v);
  options::from_pairs<options::None>(spec.options, name);
  if (name == "int8") return RtnStorage::int8(heads, shape.dim, shape.dim_v);
  return std::make_unique<PlainStorage>(*parse_dtype(name), heads, shape.dim, shape.dim_v);
}

}  // namespace fovea::cache
