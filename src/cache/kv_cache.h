// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/rope.h"

namespace fovea::cache {

/// What one layer's cache must know of its model.
struct CacheShape {
  int64_t heads_q = 0, heads_kv = 0, dim = 0, dim_v = 0;
  Tensor rope_frequencies;   ///< [R/2], for storages that hold keys before rope
  float rope_magnitude = 1;  ///< factor of the cosines and sines (YaRN)
  int64_t layer = 0, layers = 1;
};

/// Keys and values of T consecutive new tokens of one sequence.
struct KvBlock {
  Tensor k;              ///< [Hkv,T,D] f32, after rope
  Tensor k_unrotated;    ///< [Hkv,T,D] f32, before rope
  Tensor v;              ///< [Hkv,T,Dv] f32
  Tensor hidden;         ///< [T,E] f32, the layer's input; may be undefined
  int64_t position = 0;  ///< of the first token
};

/// Attention of a prefill chunk over all keys it may see: q [1,Hq,Tq,D], k and v [1,Hkv,Tk,*]; rows are the
/// last Tq keys. Exact flash attention or a planner of the sparse room.
using PrefillAttention =
    std::function<kernels::AttentionResult(const Tensor& q, const Tensor& k, const Tensor& v)>;

/// The keys and values of one layer and one sequence. Three orthogonal policies make a cache: storage (how
/// bytes are held), retention (what is kept) and selection (what a query reads); see CacheSpec. Not
/// thread-safe; kernels inside it are parallel.
class KvCache {
 public:
  virtual ~KvCache() = default;

  /// A chunk of a prompt: attends q [1,Hq,T,D] over what is held and the block itself (unquantised), then
  /// appends the block.
  virtual kernels::AttentionResult prefill(const Tensor& q, const KvBlock& block,
                                           const PrefillAttention& attention) = 0;
  /// Appends the block (T is small: 1, or a few speculated tokens), then each row reads the selected keys up
  /// to itself.
  virtual kernels::AttentionResult decode(const Tensor& q, const KvBlock& block) = 0;

  /// Tokens seen so far (not: tokens held).
  virtual int64_t length() const = 0;
  /// Forgets the tokens from position `length` on. Throws where a retention has already dropped what would be
  /// needed.
  virtual void truncate(int64_t length) = 0;
  /// An independent copy that continues from the same state.
  virtual std::unique_ptr<KvCache> fork() const = 0;
  /// Bytes that hold tokens (keys, values, scales, bounds), by what is used, not by capacity.
  virtual int64_t bytes() const = 0;
  /// Bytes the last decode call read.
  virtual int64_t bytes_read() const = 0;
  virtual void save(std::ostream& out) const = 0;
  virtual void load(std::istream& in) = 0;
};

/// A policy as written in a recipe.
struct PolicySpec {
  std::string name;
  options::Pairs options;
  friend bool operator==(const PolicySpec&, const PolicySpec&) = default;
};

/// Any storage works under any retention under any selection. Empty names mean: f16 storage, keep everything,
/// read everything.
struct CacheSpec {
  PolicySpec storage, retention, selection;
  /// Kv heads (by index) to which `retention` applies; all others keep everything. Empty vector: it applies
  /// to all.
  std::vector<uint8_t> streaming;  // [Hkv], 1 = retention applies
};

enum class PolicyKind { storage, retention, selection };

/// How a recipe reaches a policy.
struct PolicyEntry {
  std::string name;
  PolicyKind kind;
  int paper = 0;
  std::string summary;
  std::vector<options::Info> options;
};

/// All policies, an explicit list in policies.cc: storages f32, f16, bf16, int8, rtn, rotatekv; retentions
/// all, streaming (sinks and a window); selections all, quest.
const std::vector<PolicyEntry>& policies();
const PolicyEntry* find_policy(std::string_view name);

/// Builds the cache of one layer; throws Error for unknown policies, options or impossible shapes.
std::unique_ptr<KvCache> make_cache(const CacheSpec& spec, const CacheShape& shape);

}  // namespace fovea::cache
