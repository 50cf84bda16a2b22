// SPDX-License-Identifier: Apache-2.0
// Gradients of softmax attention, recomputed from lse in tiles of query rows and keys:
//   P = exp(S - lse)    dP = dO V^T    dS = P (dP - Delta) (1 - (S/cap)^2)    Delta = rowsum(dO O) - dlse
//   dV = P^T dO         dK = scale dS^T Q         dQ = scale dS K
// A task owns the dK and dV of one key tile and meets the query tiles in ascending order. It adds its share
// of a dQ tile after the task of the key tile before, so that each sum has one order for any number of
// threads.
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/backward.h"
#include "kernels/cpu/key_source.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/flash_backward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/scores-inl.h"

#ifndef FOVEA_KERNELS_CPU_FLASH_BACKWARD_ONCE
#define FOVEA_KERNELS_CPU_FLASH_BACKWARD_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kRowTile = 64;
constexpr int64_t kPlanRowTile = 192;  // gathered keys are packed for each row tile: more rows share them
constexpr int64_t kKeyTile = 128;
// Rows of several short lists that are worth one pass over the union of their keys.
constexpr int64_t kUnionRows = 64;

// How a problem is cut; the same for any number of threads.
struct Cut {
  int64_t keys = kKeyTile;       // keys that meet a row tile at once
  int64_t span = kKeyTile;       // keys of a task: more where a plan reads few of them
  int64_t rows = kRowTile;       // most rows of a row tile
  int64_t heads = 1;             // query heads in a row tile
  std::vector<int64_t> queries;  // first query of each row tile, and the end
  // Tasks of one key tile, each over consecutive batch rows and kv heads: one for each pair, or fewer where
  // the gradient of a bias is summed over them.
  int64_t batches = 1, heads_kv = 1;

  int64_t row_tiles() const { return static_cast<int64_t>(queries.size()) - 1; }
};

int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// So many keys that a list has about a tile of them, while there are tasks enough.
int64_t span_of(const KeyPlan& plan, int64_t tile) {
  constexpr int64_t kMinTasks = 8, kMostTiles = 32;
  int64_t planned = 0;
  for (const auto& range : plan.ranges) planned += range.end - range.begin;
  planned += static_cast<int64_t>(plan.columns.size());
  const int64_t all = plan.lists() * plan.keys;
  const int64_t tiles = planned > 0 ? all / (2 * planned) : 1;  // under a causal mask, lists read half
  return tile * std::clamp<int64_t>(std::min(tiles, plan.keys / (kMinTasks * tile)), 1, kMostTiles);
}

Cut cut_of(const cpu::BackwardProblem& p) {
  const AttentionArgs& a = p.args;
  Cut cut;
  if (a.key_tile > 0) cut.keys = std::min(cut.keys, a.key_tile);
  if (p.plan) cut.rows = kPlanRowTile;
  cut.span = p.plan ? span_of(*p.plan, cut.keys) : cut.keys;
  const bool own_keys = (a.bias_k && a.bias_k.head != 0) || (p.plan && p.plan->heads > a.heads_kv);
  cut.heads = own_keys ? 1 : std::clamp<int64_t>(a.group(), 1, cut.rows);
  int64_t step = cut.rows / cut.heads, block = std::max<int64_t>(1, a.queries);
  if (a.query_tile > 0) step = std::min(step, a.query_tile);
  if (p.plan)
    block = p.plan->block_q * std::clamp<int64_t>(kUnionRows / (p.plan->block_q * cut.heads), 1, 32);
  if (p.plan) step = divide_up(block, divide_up(block, step));  // even parts
  for (int64_t begin = 0; begin < a.queries; begin += block)
    for (int64_t i = begin; i < std::min(begin + block, a.queries); i += step) cut.queries.push_back(i);
  cut.queries.push_back(a.queries);
  cut.batches = p.dbias && p.dbias.batch == 0 ? 1 : a.batch;
  cut.heads_kv = p.dbias && p.dbias.head == 0 ? 1 : a.heads_kv;
  return cut;
}

// Sets `bit` for those of the keys [first, first + count) that a list has.
void mark_members(const KeyPlan& plan, int64_t list, int64_t first, int64_t count, uint32_t bit,
                  uint32_t* members) {
  const auto i = static_cast<size_t>(list);
  const int64_t end = first + count;
  const auto ranges_end = plan.ranges.begin() + plan.range_offsets[i + 1];
  auto range = std::lower_bound(plan.ranges.begin() + plan.range_offsets[i], ranges_end, first,
                                [](const KeyPlan::Range& r, int64_t key) { return r.end <= key; });
  for (; range != ranges_end && range->begin < end; ++range)
    for (int64_t key = std::max<int64_t>(range->begin, first); key < std::min<int64_t>(range->end, end);
         ++key)
      members[key - first] |= bit;
  const auto columns_end = plan.columns.begin() + plan.column_offsets[i + 1];
  auto column = std::lower_bound(plan.columns.begin() + plan.column_offsets[i], columns_end, first);
  for (; column != columns_end && *column < end; ++column) members[*column - first] |= bit;
}

// Key tiles take their turn at a query tile in ascending order.
class Turn {
 public:
  void await(int64_t tile) const {
    for (int spin = 0; next_.load(std::memory_order_acquire) != tile; ++spin)
      if (spin > 100) std::this_thread::yield();
  }
  void pass(int64_t tile) { next_.store(tile + 1, std::memory_order_release); }

 private:
  std::atomic<int64_t> next_{0};
};

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::BackwardProblem;
using cpu::Hull;

// What all tasks of a call share.
struct Shared {
  const BackwardProblem& problem;
  const Cut& cut;
  int64_t width, width_v;  // D and Dv in whole vectors
  const float* delta;      // [B,Hq,Tq]
  float* dq;               // sums of dS K: for each row tile [rows, width], one after another
  Turn* turns;             // [B,Hq,row tiles], at the first head of a row tile
};

// Not a number and infinity become 0. A row that sees such a key or query has P = NaN by its score already;
// for all others P = 0, which must stay 0 in the products.
HWY_INLINE void clear_non_finite(float* values, int64_t count) {
  const Floats d;
  for (int64_t c = 0; c < count; c += kLanes) {
    const auto x = hn::LoadU(d, values + c);
    hn::StoreU(hn::IfThenElseZero(hn::IsFinite(x), x), d, values + c);
  }
}

// scores <- P = 2^(scores - lse), grads <- dS = P (grads - delta) (1 - (scores * inverse_cap)^2)
HWY_INLINE void weigh_row(float* scores, float* grads, int64_t count, float lse, float delta,
                          float inverse_cap) {
  const Floats d;
  const auto l = hn::Set(d, lse), mean = hn::Set(d, delta), inverse = hn::Set(d, inverse_cap);
  const auto one = hn::Set(d, 1.0f);
  for (int64_t c = 0; c < count; c += kLanes) {
    const auto s = hn::LoadU(d, scores + c);
    const auto p = exp2_of(d, hn::Sub(s, l));
    auto ds = hn::Mul(p, hn::Sub(hn::LoadU(d, grads + c), mean));
    if (inverse_cap > 0) {
      const auto t = hn::Mul(s, inverse);
      ds = hn::Mul(ds, hn::NegMulAdd(t, t, one));
    }
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), ds), d, grads + c);
  }
}

// sum_c x[c] y[c]
HWY_INLINE float dot_rows(const void* x, const void* y, DType dtype, int64_t count, float* stage) {
  const Floats d;
  const int64_t width = round_up(count, kLanes);
  load_row(x, dtype, count, 1.0f, stage, width);
  load_row(y, dtype, count, 1.0f, stage + width, width);
  auto sum = hn::Zero(d);
  for (int64_t c = 0; c < width; c += kLanes)
    sum = hn::MulAdd(hn::LoadU(d, stage + c), hn::LoadU(d, stage + width + c), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Panels [round_up(Dv)][kPanel] of transposed values, as pack_keys makes them of keys.
HWY_INLINE void pack_value_panels(const AttentionArgs& a, int64_t b, int64_t kv, const KeyTile& tile,
                                  float* stage, float* to) {
  const int64_t depth = round_up(a.dim_v, kLanes);
  for (int64_t c = 0; c < tile.count; c += kLanes) {
    const float* rows[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      float* row = stage + r * depth;
      rows[r] = row;
      if (c + r < tile.count)
        load_row(a.v.at(b, kv, tile.key(c + r)), a.v.dtype, a.dim_v, 1.0f, row, depth);
      else
        std::fill(row, row + depth, 0.0f);
    }
    transpose_rows(rows, depth, to + c / kPanel * depth * kPanel + c % kPanel, kPanel);
  }
}

HWY_INLINE void add_row(float* to, const float* from, int64_t count) {
  const Floats d;
  for (int64_t c = 0; c < count; c += kLanes)
    hn::StoreU(hn::Add(hn::LoadU(d, to + c), hn::LoadU(d, from + c)), d, to + c);
}

// Keys and values of a tile in the forms that the products need.
struct PackedTile {
  memory::Buffer<float> k, v;  // transposed panels, for Q K^T and dO V^T
  memory::Buffer<float> rows;  // keys [count, width] with what is not finite cleared, for dS K

  void reserve(int64_t keys, int64_t depth, int64_t width, int64_t width_v) {
    k.reserve(round_up(keys, kPanel) * depth);
    v.reserve(round_up(keys, kPanel) * width_v);
    rows.reserve(keys * width);
  }
};

class BackwardTile {
 public:
  // All allocation happens here, so that a task that others wait for cannot fail.
  void reserve(const Shared& shared);
  void run(const Shared& shared, int64_t tile, int64_t b, int64_t kv);

 private:
  void meet(const RowTile& rows, int64_t row_tile);
  void meet_tile(const RowTile& rows, const KeyTile& tile, const PackedTile& packed, Turn& turn);
  bool choose_keys(const RowTile& rows, const Hull& hull);
  void pack(const KeyTile& tile, int64_t head, PackedTile& to);
  void weigh_rows(const RowTile& rows, const KeyTile& tile);
  void add_bias_gradient(const RowTile& rows, int64_t row, const KeyTile& tile, int64_t low, int64_t high);
  void add_products(const RowTile& rows, const KeyTile& tile, const PackedTile& packed, Turn& turn);
  int64_t list_of_row(const RowTile& rows, int64_t row) const {
    const int64_t block_q = shared_->problem.plan->block_q;
    return rows.query_of(row) / block_q - rows.query / block_q;
  }

  const Shared* shared_ = nullptr;
  const AttentionArgs* a_ = nullptr;
  int64_t index_ = 0, batch_ = 0, depth_ = 0, stride_ = 0;
  float unit_ = 1;
  KeyTile whole_;   // the task's keys
  KeyTile chosen_;  // those a plan's lists have; gathered, they may be more than a tile
  PackedTile packed_, packed_chosen_;
  memory::Buffer<float> q_, d_o_, scores_, grads_, dk_, dv_, part_, stage_;
  memory::Buffer<int32_t> keys_;
  memory::Buffer<uint32_t> members_;
  GatheredRow gathered_;
};

void BackwardTile::reserve(const Shared& shared) {
  shared_ = &shared, a_ = &shared.problem.args;
  const int64_t keys = shared.cut.keys, width = shared.width, width_v = shared.width_v;
  depth_ = packed_depth(*a_), stride_ = round_up(keys, kLanes) + kLanes, unit_ = score_unit(*a_);
  packed_.reserve(keys, depth_, width, width_v);
  q_.reserve(shared.cut.rows * depth_);
  d_o_.reserve(shared.cut.rows * width_v);
  scores_.reserve(shared.cut.rows * stride_);
  grads_.reserve(shared.cut.rows * stride_);
  dk_.reserve(shared.cut.span * width);
  dv_.reserve(shared.cut.span * width_v);
  stage_.reserve((kLanes + 1) * std::max(depth_, width_v));
  if (!shared.problem.plan) return;
  packed_chosen_.reserve(keys, depth_, width, width_v);
  part_.reserve(keys * std::max(width, width_v));
  keys_.reserve(shared.cut.span);
  members_.reserve(shared.cut.span);
  gathered_.reserve(keys);
}

void BackwardTile::run(const Shared& shared, int64_t tile, int64_t b, int64_t kv) {
  const BackwardProblem& p = shared.problem;
  const int64_t first = tile * shared.cut.span, end = std::min(first + shared.cut.span, a_->keys);
  index_ = tile, batch_ = b;
  // Keys past the length of the sequence meet no row, neither here nor in the tiles that follow.
  whole_ = {first, std::max<int64_t>(0, std::min(end, a_->length(b)) - first)};
  std::fill_n(dk_.data(), (end - first) * shared.width, 0.0f);
  std::fill_n(dv_.data(), (end - first) * shared.width_v, 0.0f);
  if (whole_.count > 0) {
    const bool own_keys = a_->bias_k && a_->bias_k.head != 0;
    const int64_t first_head = kv * a_->group(), last_head = first_head + a_->group();
    for (int64_t head = first_head; head < last_head; head += shared.cut.heads) {
      if ((head == first_head || own_keys) && whole_.count <= shared.cut.keys) pack(whole_, head, packed_);
      for (int64_t t = 0; t < shared.cut.row_tiles(); ++t) {
        const int64_t query = shared.cut.queries[static_cast<size_t>(t)];
        meet({b, head, std::min(shared.cut.heads, last_head - head), query,
              shared.cut.queries[static_cast<size_t>(t + 1)] - query},
             t);
      }
    }
  }
  for (int64_t c = 0; c < end - first; ++c) {
    store_row(dk_.data() + c * shared.width, a_->dim, 1 / unit_, p.dk.at(b, kv, first + c), p.dk.dtype);
    store_row(dv_.data() + c * shared.width_v, a_->dim_v, 1.0f, p.dv.at(b, kv, first + c), p.dv.dtype);
  }
}

// The share of one row tile and the task's keys in all gradients.
void BackwardTile::meet(const RowTile& rows, int64_t row_tile) {
  Turn& turn = shared_->turns[(rows.batch * a_->heads_q + rows.head) * shared_->cut.row_tiles() + row_tile];
  const Hull hull = hull_of(*a_, rows);
  const int64_t first = whole_.first, end = first + whole_.count;
  const bool seen = first < hull.prefix || (first < hull.end && end > hull.begin && hull.begin < hull.end);
  if (!seen || (shared_->problem.plan && !choose_keys(rows, hull))) {
    turn.await(index_);
    return turn.pass(index_);
  }
  if (!shared_->problem.plan || !chosen_.keys) {
    meet_tile(rows, shared_->problem.plan ? chosen_ : whole_, packed_, turn);
  } else {
    for (int64_t c = 0; c < chosen_.count; c += shared_->cut.keys) {
      KeyTile tile = cpu::tile_of({chosen_.keys + c, std::min(shared_->cut.keys, chosen_.count - c)});
      tile.keys = chosen_.keys + c;
      tile.members = chosen_.members ? chosen_.members + c : nullptr;
      pack(tile, rows.head, packed_chosen_);
      meet_tile(rows, tile, packed_chosen_, turn);
    }
  }
  turn.pass(index_);
}

void BackwardTile::meet_tile(const RowTile& rows, const KeyTile& tile, const PackedTile& packed, Turn& turn) {
  const int64_t n = rows.rows(), width_v = shared_->width_v, columns = round_up(tile.count, kLanes);
  pack_queries(*a_, rows, unit_, q_.data());
  for (int64_t r = 0; r < n; ++r)
    load_row(shared_->problem.d_o.at(rows.batch, rows.head_of(r), rows.query_of(r)),
             shared_->problem.d_o.dtype, a_->dim_v, 1.0f, d_o_.data() + r * width_v, width_v);
  multiply_panels(
      {q_.data(), depth_, 1, packed.k.data(), kPanel, scores_.data(), stride_, n, a_->dim + a_->rank, false},
      kPanel * depth_, columns);
  multiply_panels(
      {d_o_.data(), width_v, 1, packed.v.data(), kPanel, grads_.data(), stride_, n, a_->dim_v, false},
      kPanel * width_v, columns);
  weigh_rows(rows, tile);
  add_products(rows, tile, packed, turn);
}

// Which of the task's keys the lists of the rows have. Few of them are gathered; of many, all are used and
// the members masked.
bool BackwardTile::choose_keys(const RowTile& rows, const Hull& hull) {
  const KeyPlan& plan = *shared_->problem.plan;
  const int64_t count = whole_.count, block = rows.query / plan.block_q;
  const int64_t lists = (rows.query + rows.queries - 1) / plan.block_q - block + 1;
  const int64_t first_list = cpu::list_of(plan, *a_, rows.batch, rows.head, block);
  uint32_t* members = members_.data();
  std::fill(members, members + count, uint32_t{0});
  for (int64_t l = 0; l < lists; ++l)
    mark_members(plan, first_list + l, whole_.first, count, uint32_t{1} << l, members);
  int64_t chosen = 0;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t key = whole_.first + c;
    if (members[c] != 0 && (key < hull.prefix || (key >= hull.begin && key < hull.end)))
      keys_[chosen++] = static_cast<int32_t>(key);
  }
  if (chosen == 0) return false;
  chosen_ = whole_;
  if (4 * chosen < 3 * count || count > shared_->cut.keys) {
    chosen_.keys = keys_.data();
    chosen_.count = chosen;
    for (int64_t c = 0; c < chosen; ++c) members[c] = members[keys_[c] - whole_.first];
    chosen_.members = lists > 1 ? members : nullptr;
  } else {
    chosen_.members = lists > 1 || chosen < count ? members : nullptr;
  }
  return true;
}

void BackwardTile::pack(const KeyTile& tile, int64_t head, PackedTile& to) {
  const int64_t kv = head / a_->group(), width = shared_->width;
  pack_keys(*a_, batch_, head, tile, stage_.data(), to.k.data());
  pack_value_panels(*a_, batch_, kv, tile, stage_.data(), to.v.data());
  for (int64_t c = 0; c < tile.count; ++c)
    load_row(a_->k.at(batch_, kv, tile.key(c)), a_->k.dtype, a_->dim, 1.0f, to.rows.data() + c * width,
             width);
  clear_non_finite(to.rows.data(), tile.count * width);
}

void BackwardTile::weigh_rows(const RowTile& rows, const KeyTile& tile) {
  const float inverse_cap = a_->softcap > 0 ? 1 / (a_->softcap * kLog2E) : 0.0f;
  for (int64_t r = 0; r < rows.rows(); ++r) {
    const int64_t h = rows.head_of(r), i = rows.query_of(r);
    const int64_t at = (rows.batch * a_->heads_q + h) * a_->queries + i;
    float *scores = scores_.data() + r * stride_, *grads = grads_.data() + r * stride_;
    const VisibleKeys sees = columns_seen(tile, a_->visible_keys(rows.batch, i));
    const float lse = shared_->problem.lse[at];
    const auto clear = [&](int64_t low, int64_t high) {
      if (low >= high) return;
      std::fill(scores + low, scores + high, 0.0f);
      std::fill(grads + low, grads + high, 0.0f);
    };
    if (sees.empty() || lse == kMinusInfinity) {
      clear(0, tile.count);
      continue;
    }
    const int64_t low = sees.first(), high = sees.last();
    adjust_scores(*a_, rows, r, tile, tile.members ? list_of_row(rows, r) : 0, unit_, gathered_, scores, low,
                  high);
    weigh_row(scores + low, grads + low, high - low, lse * kLog2E, shared_->delta[at], inverse_cap);
    clear(0, low);
    if (sees.begin < sees.end) clear(sees.prefix, sees.begin);
    clear(high, tile.count);
    if (shared_->problem.dbias) add_bias_gradient(rows, r, tile, low, high);
  }
}

void BackwardTile::add_bias_gradient(const RowTile& rows, int64_t row, const KeyTile& tile, int64_t low,
                                     int64_t high) {
  const float* grads = grads_.data() + row * stride_;
  float* to = shared_->problem.dbias.at<float>(rows.batch, rows.head_of(row), rows.query_of(row));
  for (int64_t c = low; c < high; ++c) to[tile.key(c)] += grads[c];
}

void BackwardTile::add_products(const RowTile& rows, const KeyTile& tile, const PackedTile& packed,
                                Turn& turn) {
  const int64_t n = rows.rows(), width = shared_->width, width_v = shared_->width_v;
  clear_non_finite(q_.data(), n * depth_);
  Product dv{scores_.data(), 1, stride_, d_o_.data(), width_v, dv_.data(), width_v, tile.count, n, true};
  Product dk{grads_.data(), 1, stride_, q_.data(), depth_, dk_.data(), width, tile.count, n, true};
  if (!tile.keys) {
    multiply(dv, width_v);
    multiply(dk, width);
  } else {
    // Gathered keys: the sums of this row tile go to scattered rows.
    dv.c = dk.c = part_.data();
    dv.accumulate = dk.accumulate = false;
    multiply(dv, width_v);
    for (int64_t c = 0; c < tile.count; ++c)
      add_row(dv_.data() + (tile.keys[c] - whole_.first) * width_v, part_.data() + c * width_v, width_v);
    multiply(dk, width);
    for (int64_t c = 0; c < tile.count; ++c)
      add_row(dk_.data() + (tile.keys[c] - whole_.first) * width, part_.data() + c * width, width);
  }
  float* dq =
      shared_->dq + ((rows.batch * a_->heads_q + rows.head) * a_->queries + rows.query * rows.heads) * width;
  turn.await(index_);
  multiply({grads_.data(), stride_, 1, packed.rows.data(), width, dq, width, n, tile.count, true}, width);
}

// Delta of every row, and dsink.
void prepare_rows(const BackwardProblem& p, float* delta) {
  const AttentionArgs& a = p.args;
  std::vector<memory::Buffer<float>> stages(static_cast<size_t>(threads()));
  for (auto& stage : stages) stage.reserve(2 * round_up(a.dim_v, kLanes));
  parallel_for(a.heads_q, [&](int64_t h, int worker) {
    float* stage = stages[static_cast<size_t>(worker)].data();
    double dsink = 0;
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t i = 0; i < a.queries; ++i) {
        const int64_t at = (b * a.heads_q + h) * a.queries + i;
        delta[at] = dot_rows(p.o.at(b, h, i), p.d_o.at(b, h, i), p.o.dtype, a.dim_v, stage) -
                    (p.d_lse ? p.d_lse[at] : 0.0f);
        if (p.dsink && p.lse[at] != kMinusInfinity)
          dsink -= std::exp(static_cast<double>(a.sink[h]) - static_cast<double>(p.lse[at])) *
                   static_cast<double>(delta[at]);
      }
    if (p.dsink) p.dsink[h] = static_cast<float>(dsink);
  });
}

void run_backward_tasks(const BackwardProblem& p) {
  const AttentionArgs& a = p.args;
  const Cut cut = cut_of(p);
  const int64_t width = round_up(a.dim, kLanes), width_v = round_up(a.dim_v, kLanes);
  const int64_t rows = a.batch * a.heads_q * a.queries;
  memory::Buffer<float> delta(rows), dq(rows * width);
  const auto turns = std::make_unique<Turn[]>(static_cast<size_t>(a.batch * a.heads_q * cut.row_tiles()));
  const Shared shared{p, cut, width, width_v, delta.data(), dq.data(), turns.get()};
  std::fill_n(dq.data(), rows * width, 0.0f);
  prepare_rows(p, delta.data());

  std::vector<BackwardTile> tiles(static_cast<size_t>(threads()));
  for (BackwardTile& tile : tiles) tile.reserve(shared);
  const int64_t key_tiles = (a.keys + cut.span - 1) / cut.span, units = cut.batches * cut.heads_kv;
  const int64_t batches = a.batch / std::max<int64_t>(1, cut.batches);
  const int64_t heads = a.heads_kv / std::max<int64_t>(1, cut.heads_kv);
  // All units of a key tile come before the next key tile: neighbours in this order wait least for each
  // other.
  parallel_for(key_tiles * units, [&](int64_t task, int worker) {
    const int64_t unit = task % units, first_b = unit / cut.heads_kv * batches;
    const int64_t first_kv = unit % cut.heads_kv * heads;
    for (int64_t b = first_b; b < first_b + batches; ++b)
      for (int64_t kv = first_kv; kv < first_kv + heads; ++kv)
        tiles[static_cast<size_t>(worker)].run(shared, task / units, b, kv);
  });
  const int64_t heads_tile = cut.heads;
  parallel_for(a.batch * a.heads_q, [&](int64_t task, int) {
    const int64_t b = task / a.heads_q, h = task % a.heads_q;
    // Heads of a row tile lie side by side for each query.
    const int64_t first = h / a.group() * a.group() + h % a.group() / heads_tile * heads_tile;
    const int64_t together = std::min(heads_tile, (h / a.group() + 1) * a.group() - first);
    const float* from = dq.data() + ((b * a.heads_q + first) * a.queries + (h - first)) * width;
    for (int64_t i = 0; i < a.queries; ++i)
      store_row(from + i * together * width, a.dim, a.scale, p.dq.at(b, h, i), p.dq.dtype);
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(run_backward_tasks);

void cpu::run_backward(const BackwardProblem& problem) { HWY_DYNAMIC_DISPATCH(run_backward_tasks)(problem); }

}  // namespace fovea::kernels
#endif
