// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/rotatekv_storage.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fovea/core/memory.h"
#include "fovea/kernels/hadamard.h"
#include "fovea/kernels/permute.h"
#include "fovea/kernels/quantize.h"
#include "fovea/kernels/rope.h"

namespace fovea::cache {
namespace {

constexpr int64_t kHeadGroup = 4;  // where the options leave it open

// Options for rows of `heads` of the layer's kv heads. A part of the layer, or its values, may not divide by
// the groups that suit the keys of the whole layer: they take the largest common divisor.
RotateKvOptions row_options(const RotateKvStorageOptions& options, int64_t heads, int64_t dim,
                            int64_t head_group) {
  RotateKvOptions result;
  result.bits = options.bits;
  result.clip_ratio = options.clip_ratio;
  result.group_size = std::gcd(std::min(options.group_size, heads * dim), heads * dim);
  result.head_group = std::gcd(head_group, heads);
  check_rows(result, heads, dim);
  return result;
}

RotateKvOptions key_options(const RotateKvStorageOptions& options, int64_t heads, const CacheShape& shape) {
  const int64_t channels = shape.heads_kv * shape.dim;
  require(options.group_size >= channels || channels % options.group_size == 0,
          "rotatekv: option group_size = ", options.group_size, " does not divide the ", channels,
          " channels of a token");
  require(options.head_group == 0 || shape.heads_kv % options.head_group == 0,
          "rotatekv: option head_group = ", options.head_group, " does not divide the ", shape.heads_kv,
          " kv heads");
  return row_options(options, heads, shape.dim, options.head_group > 0 ? options.head_group : kHeadGroup);
}

// Tokens that go through all steps of reading together, within the first-level cache.
constexpr int64_t kTokensPerRun = 8;

constexpr int32_t kRopeBlock = 64;

CodeRows rows_of(const RotateKvOptions& options, int64_t channels) {
  return {1,
          channels,
          {.bits = options.bits,
           .group = options.group_size,
           .clip = static_cast<float>(options.clip_ratio),
           .scale_type = DType::f16}};
}

// Rotates, reorders and quantises x [1,H,T,D].
void write_rotated(CodeRows& to, const Tensor& x, const Tensor& perm, int64_t head_group, int64_t slot) {
  const Tensor z = rotate_rows(x, perm, head_group);
  to.resize(std::max(to.rows(), slot + z.dim(1)));
  if (z.dim(1) > 0) to.write(0, slot, z.dim(1), z.data<float>(), z.dim(2));
}

}  // namespace

RotateKvStorage::RotateKvStorage(const RotateKvStorageOptions& options, int64_t heads,
                                 const CacheShape& shape)
    : CodedStorage(heads, shape.dim, shape.dim_v),
      pivots_wanted_(options.n_pivot),
      frequencies_(shape.rope_frequencies),
      magnitude_(shape.rope_magnitude),
      head_group_(key_options(options, heads, shape).head_group),
      k_(rows_of(key_options(options, heads, shape), heads * shape.dim)),
      v_(rows_of(row_options(options, heads, shape.dim_v, 1), heads * shape.dim_v)),
      positions_(1, size_of(DType::i32)),
      sink_rows_(1, heads * (shape.dim + shape.dim_v) * size_of(DType::f16)) {
  if (!frequencies_.defined()) return;
  Tensor positions = Tensor::empty({kRopeBlock}, DType::i32);
  std::iota(positions.data<int32_t>(), positions.data<int32_t>() + kRopeBlock, 0);
  offsets_ = kernels::rope_table(positions, frequencies_);
}

void RotateKvStorage::set_order(const Tensor& perm) {
  perm_ = perm;
  inverse_ = perm.defined() ? kernels::inverse_permutation(perm) : Tensor();
}

int64_t RotateKvStorage::token_bytes() const {
  return k_.row_bytes() + v_.row_bytes() + positions_.row_bytes();
}

void RotateKvStorage::observe(const NewRows& rows) {
  find_sinks(rows);
  if (slots() > 0) return;  // rows that are held already follow another order
  const int64_t count = rows.k_unrotated.dim(1);
  std::vector<int64_t> ordinary;
  for (int64_t t = 0; t < count; ++t)
    if (!is_sink(rows.position + t)) ordinary.push_back(t);
  if (ordinary.empty()) return;
  Tensor sample = rows.k_unrotated.unsqueeze(0);
  if (static_cast<int64_t>(ordinary.size()) < count) {
    sample = Tensor::empty({1, heads_, static_cast<int64_t>(ordinary.size()), dim_});
    for (size_t i = 0; i < ordinary.size(); ++i)
      sample.select(2, static_cast<int64_t>(i))
          .copy_from(rows.k_unrotated.unsqueeze(0).select(2, ordinary[i]));
  }
  set_order(rotatekv_calibrate(sample, head_group_));
}

// The sinks of a prompt are the tokens of its pivots_wanted_ largest hidden entries. Chunks come one by one:
// each adds its own entries to the largest so far.
void RotateKvStorage::find_sinks(const NewRows& rows) {
  if (!rows.hidden.defined() || rows.hidden.dim(0) == 0 || pivots_wanted_ == 0) return;
  const Tensor hidden = rows.hidden;
  const Tensor mask = rotatekv_sinks(hidden.unsqueeze(0), pivots_wanted_);
  for (int64_t t = 0; t < hidden.dim(0); ++t) {
    if (mask.at<uint8_t>(0, t) == 0) continue;
    for (int64_t e = 0; e < hidden.dim(1); ++e)
      pivots_.push_back({std::fabs(hidden.at<float>(t, e)), rows.position + t});
    std::stable_sort(pivots_.begin(), pivots_.end(),
                     [](const Pivot& a, const Pivot& b) { return a.magnitude > b.magnitude; });
    pivots_.resize(std::min(pivots_.size(), static_cast<size_t>(pivots_wanted_)));
  }
}

bool RotateKvStorage::is_sink(int64_t position) const {
  return std::any_of(pivots_.begin(), pivots_.end(),
                     [&](const Pivot& pivot) { return pivot.position == position; });
}

void RotateKvStorage::write(const NewRows& rows, int64_t token, int64_t count, int64_t slot) {
  const auto part = [&](const Tensor& x) { return x.slice(1, token, token + count).unsqueeze(0); };
  write_rotated(k_, part(rows.k_unrotated), perm_, head_group_, slot);
  write_rotated(v_, part(rows.v), {}, 1, slot);
  positions_.resize(std::max(positions_.rows(), slot + count));
  for (int64_t i = 0; i < count; ++i)
    *positions_.row<int32_t>(0, slot + i) = static_cast<int32_t>(rows.position + token + i);

  drop_sinks(slot, slot + count);
  for (int64_t i = 0; rows.prompt && i < count; ++i)
    if (is_sink(rows.position + token + i)) keep_sink(rows, token + i, slot + i);
}

void RotateKvStorage::keep_sink(const NewRows& rows, int64_t token, int64_t slot) {
  sink_slots_.push_back(slot);
  sink_rows_.resize(static_cast<int64_t>(sink_slots_.size()));
  const Tensor v = rotate_rows(rows.v.slice(1, token, token + 1).unsqueeze(0), {}, 1);
  Half* out = sink_row(sink_slots_.size() - 1);
  for (int64_t h = 0; h < heads_; ++h) {
    const float* k = &rows.k_unrotated.at<float>(h, token, 0);
    out = std::transform(k, k + dim_, out, [](float x) { return to_half(x); });
  }
  std::transform(v.data<float>(), v.data<float>() + heads_ * dim_v_, out, [](float x) { return to_half(x); });
}

void RotateKvStorage::drop_sinks(int64_t first_slot, int64_t last_slot) {
  const int64_t width = heads_ * (dim_ + dim_v_);
  for (size_t i = sink_slots_.size(); i-- > 0;) {
    if (sink_slots_[i] < first_slot || sink_slots_[i] >= last_slot) continue;
    const size_t last = sink_slots_.size() - 1;
    std::copy_n(sink_row(last), i == last ? 0 : width, sink_row(i));
    sink_slots_[i] = sink_slots_[last];
    sink_slots_.pop_back();
    sink_rows_.resize(static_cast<int64_t>(last));
  }
}

void RotateKvStorage::truncate(int64_t slots, int64_t length) {
  drop_sinks(slots, this->slots());
  k_.resize(slots);
  v_.resize(slots);
  positions_.resize(slots);
  std::erase_if(pivots_, [&](const Pivot& pivot) { return pivot.position >= length; });
  if (slots == 0) set_order({});
}

void RotateKvStorage::decode_rows(int64_t, int64_t slot, int64_t count, float* k, float* v) const {
  const int64_t width = heads_ * dim_, width_v = heads_ * dim_v_;
  thread_local memory::Buffer<float> scratch;
  scratch.reserve(kTokensPerRun * width);
  for (int64_t first = 0; first < count; first += kTokensPerRun) {
    const int64_t run = std::min(kTokensPerRun, count - first);
    const Tensor y = Tensor::wrap(k + first * width, {run, width}, DType::f32);
    if (inverse_.defined()) {
      k_.read(0, slot + first, run, scratch.data());
      kernels::gather_channels(Tensor::wrap(scratch.data(), {run, width}, DType::f32), inverse_, y);
    } else {
      k_.read(0, slot + first, run, y.data<float>());
    }
    kernels::hadamard_rows(y, head_group_ * dim_);
    put_sinks(slot + first, y, 0);
    if (frequencies_.defined()) apply_rope(slot + first, y.reshape({run, heads_, dim_}));
    if (v == nullptr) continue;
    const Tensor values = Tensor::wrap(v + first * width_v, {run, width_v}, DType::f32);
    v_.read(0, slot + first, run, values.data<float>());
    put_sinks(slot + first, values, width);
  }
}

// Rows [count,*] of the tokens from `slot` on; `offset` is where they begin in the row of a sink.
void RotateKvStorage::put_sinks(int64_t slot, const Tensor& rows, int64_t offset) const {
  const int64_t width = rows.dim(1);
  for (size_t i = 0; i < sink_slots_.size(); ++i) {
    const int64_t row = sink_slots_[i] - slot;
    if (row < 0 || row >= rows.dim(0)) continue;
    const Half* from = sink_row(i) + offset;
    std::transform(from, from + width, rows.data<float>() + row * width, [](Half h) { return to_float(h); });
  }
}

// With position = B + j, B a multiple of kRopeBlock: cos(B + j) = cos B cos j - sin B sin j, and sin(B + j) =
// sin B cos j + cos B sin j, so sines are taken once per block of positions, not per token read.
void RotateKvStorage::apply_rope(int64_t slot, const Tensor& keys) const {
  const int64_t count = keys.dim(0), pairs = frequencies_.dim(0);
  const kernels::RopeTable table{Tensor::empty({count, pairs}), Tensor::empty({count, pairs})};
  kernels::RopeTable base;
  int32_t base_position = -1;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t position = *positions_.row<int32_t>(0, slot + i), in_block = position % kRopeBlock;
    if (base_position != position - in_block) {
      base_position = position - in_block;
      base = kernels::rope_table(Tensor::wrap(&base_position, {1}, DType::i32), frequencies_, magnitude_);
    }
    const float *cos_b = base.cos.data<float>(), *sin_b = base.sin.data<float>();
    const float* cos_j = offsets_.cos.data<float>() + in_block * pairs;
    const float* sin_j = offsets_.sin.data<float>() + in_block * pairs;
    float *cosines = table.cos.data<float>() + i * pairs, *sines = table.sin.data<float>() + i * pairs;
    for (int64_t m = 0; m < pairs; ++m) {
      cosines[m] = cos_b[m] * cos_j[m] - sin_b[m] * sin_j[m];
      sines[m] = sin_b[m] * cos_j[m] + cos_b[m] * sin_j[m];
    }
  }
  kernels::apply_rope(keys.transpose(0, 1).unsqueeze(0), table);
}

// Values are rotated head by head: sum p (H v) = H (sum p v).
void RotateKvStorage::restore_values(const Tensor& rows) const { kernels::hadamard_rows(rows, dim_v_); }

void RotateKvStorage::save(ByteWriter& out) const {
  k_.save(out);
  v_.save(out);
  positions_.save(out);
  out.value(static_cast<int64_t>(perm_.defined()));
  if (perm_.defined()) out.bytes(perm_.raw(), perm_.bytes());
  out.value(static_cast<int64_t>(pivots_.size()));
  for (const auto& pivot : pivots_) {
    out.value(pivot.magnitude);
    out.value(pivot.position);
  }
  out.value(static_cast<int64_t>(sink_slots_.size()));
  for (int64_t slot : sink_slots_) out.value(slot);
  sink_rows_.save(out);
}

void RotateKvStorage::load(ByteReader& in, int64_t slots) {
  k_.load(in, slots);
  v_.load(in, slots);
  positions_.load(in, slots);
  for (int64_t i = 0; i < slots; ++i)
    require(*positions_.row<int32_t>(0, i) >= 0, "rotatekv: the saved cache has a negative position");
  set_order({});
  if (in.value<int64_t>() != 0) {
    const Tensor perm = Tensor::empty({heads_ * dim_}, DType::i32);
    in.bytes(perm.raw(), perm.bytes());
    set_order(perm);  // throws unless it is a permutation
  }
  const auto pivots = in.value<int64_t>();
  require(pivots >= 0 && pivots <= pivots_wanted_, "rotatekv: the saved cache has ", pivots, " pivots");
  pivots_.resize(static_cast<size_t>(pivots));
  for (auto& pivot : pivots_) {
    pivot.magnitude = in.value<float>();
    pivot.position = in.value<int64_t>();
  }
  const auto sinks = in.value<int64_t>();
  require(sinks >= 0 && sinks <= slots, "rotatekv: the saved cache has ", sinks, " sinks");
  sink_slots_.clear();
  for (int64_t i = 0; i < sinks; ++i) {
    const auto slot = in.value<int64_t>();
    require(slot >= 0 && slot < slots, "rotatekv: the saved cache has a sink in slot ", slot);
    sink_slots_.push_back(slot);
  }
  sink_rows_.load(in, sinks);
}

}  // namespace fovea::cache
