// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/kv_cache.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "fovea/cache/part.h"
#include "fovea/cache/policies.h"

namespace fovea::cache {
namespace {

constexpr int64_t kMagic = 0x3176'4b61'6576'6f46;  // "Foveakv1"
constexpr int64_t kLongestText = 1 << 16;

struct HeadClass {
  std::vector<int64_t> heads;  // kv heads, ascending
  Part part;
};

// The heads of x [...,H*times,...] (axis `axis`) that belong to the kv heads `heads`: a view where they are
// neighbours.
Tensor take_heads(const Tensor& x, int axis, const std::vector<int64_t>& heads, int64_t times) {
  const auto count = static_cast<int64_t>(heads.size());
  if (heads.back() - heads.front() + 1 == count)
    return x.slice(axis, heads.front() * times, (heads.back() + 1) * times);
  Shape shape = x.shape();
  shape[axis] = count * times;
  Tensor result = Tensor::empty(shape, x.dtype());
  for (int64_t i = 0; i < count; ++i)
    result.slice(axis, i * times, (i + 1) * times)
        .copy_from(x.slice(axis, heads[static_cast<size_t>(i)] * times,
                           (heads[static_cast<size_t>(i)] + 1) * times));
  return result;
}

class ComposedCache final : public KvCache {
 public:
  ComposedCache(const CacheSpec& spec, const CacheShape& shape) : spec_(spec), shape_(shape) {
    const Retention retention = Retention::make(spec.retention);
    std::vector<int64_t> keeping, streaming;
    for (int64_t h = 0; h < shape.heads_kv; ++h) {
      const bool applies = spec.streaming.empty() || spec.streaming[static_cast<size_t>(h)] != 0;
      (applies && !retention.keeps_all() ? streaming : keeping).push_back(h);
    }
    const auto add = [&](std::vector<int64_t> heads, const Retention& kept) {
      if (heads.empty()) return;
      const auto count = static_cast<int64_t>(heads.size());
      classes_.push_back({std::move(heads), Part(spec, kept, count, shape)});
    };
    add(std::move(keeping), {});
    add(std::move(streaming), retention);
  }

  kernels::AttentionResult prefill(const Tensor& q, const KvBlock& block,
                                   const PrefillAttention& attention) override {
    check_call(q, block);
    require(static_cast<bool>(attention), "cache: prefill needs an attention to call");
    return over_classes(q, block, true, [&](Part& part, const Tensor& part_q, const NewRows& rows) {
      auto result = part.prefill(part_q, rows, attention);
      require(result.o.shape() == Shape({1, part_q.dim(1), part_q.dim(2), shape_.dim_v}),
              "cache: the prefill attention returned o ", result.o.shape());
      return result;
    });
  }

  kernels::AttentionResult decode(const Tensor& q, const KvBlock& block) override {
    check_call(q, block);
    return over_classes(q, block, false, [](Part& part, const Tensor& part_q, const NewRows& rows) {
      return part.decode(part_q, rows);
    });
  }

  int64_t length() const override { return length_; }

  void truncate(int64_t length) override {
    require(length >= 0 && length <= length_, "cache: cannot truncate ", length_, " tokens to ", length);
    for (const auto& entry : classes_)
      require(entry.part.can_truncate(length), "cache: cannot truncate ", length_, " tokens to ", length,
              ": the streaming retention has dropped tokens that would be in the window again");
    for (auto& entry : classes_) entry.part.truncate(length);
    length_ = length;
  }

  std::unique_ptr<KvCache> fork() const override { return std::make_unique<ComposedCache>(*this); }

  int64_t bytes() const override {
    return std::accumulate(classes_.begin(), classes_.end(), int64_t{0},
                           [](int64_t sum, const HeadClass& entry) { return sum + entry.part.bytes(); });
  }
  int64_t bytes_read() const override {
    return std::accumulate(classes_.begin(), classes_.end(), int64_t{0},
                           [](int64_t sum, const HeadClass& entry) { return sum + entry.part.bytes_read(); });
  }

  void save(std::ostream& out) const override {
    ByteWriter writer(out);
    writer.value(kMagic);
    writer.text(description());
    writer.value(length_);
    for (const auto& entry : classes_) entry.part.save(writer);
    writer.finish();
  }

  void load(std::istream& in) override {
    ByteReader reader(in);
    require(reader.value<int64_t>() == kMagic,
            "cache: this is not a saved cache (or one of another version)");
    const std::string saved = reader.text(kLongestText), wanted = description();
    require(saved == wanted, "cache: the saved cache is of another kind: ", saved, "; expected ", wanted);
    const auto length = reader.value<int64_t>();
    require(length >= 0, "cache: the saved cache has ", length, " tokens");
    ComposedCache loaded(spec_, shape_);
    for (auto& entry : loaded.classes_) entry.part.load(reader, length);
    reader.finish();
    classes_ = std::move(loaded.classes_);
    length_ = length;
  }

 private:
  // What must agree between a saved cache and the one that loads it.
  std::string description() const {
    std::string text;
    const auto add_policy = [&](PolicyKind kind, const PolicySpec& spec) {
      const auto& entry = policy_of(kind, spec.name);
      text += entry.name;
      for (const auto& field : entry.options) {
        std::string value = field.default_value;
        for (const auto& [key, given] : spec.options)
          if (options::find({field}, key) != nullptr) value = options::canonical(field, given, field.name);
        text += "," + field.name + "=" + value;
      }
      text += " ";
    };
    add_policy(PolicyKind::storage, spec_.storage);
    add_policy(PolicyKind::retention, spec_.retention);
    add_policy(PolicyKind::selection, spec_.selection);
    for (const auto& entry : classes_) {
      text += "heads";
      for (int64_t h : entry.heads) text += "," + std::to_string(h);
      text += " ";
    }
    return text + "of " +
           Shape({shape_.heads_q, shape_.heads_kv, shape_.dim, shape_.dim_v, shape_.layer, shape_.layers})
               .to_string();
  }

  void check_call(const Tensor& q, const KvBlock& block) const {
    const int64_t rows = q.rank() == 4 ? q.dim(2) : -1;
    const auto expect = [](const Tensor& x, const Shape& shape, const char* name) {
      require(x.defined(), "cache: ", name, " should be f32", shape, ", got nothing");
      require(x.dtype() == DType::f32 && x.shape() == shape, "cache: ", name, " should be f32", shape,
              ", got ", x);
      require(shape[shape.rank() - 1] <= 1 || x.stride(-1) == 1, "cache: the last axis of ", name,
              " is not contiguous");
    };
    require(rows >= 0, "cache: q should be [1,Hq,T,D], got ", q.shape());
    expect(q, {1, shape_.heads_q, rows, shape_.dim}, "q");
    expect(block.k, {shape_.heads_kv, rows, shape_.dim}, "k");
    expect(block.v, {shape_.heads_kv, rows, shape_.dim_v}, "v");
    if (std::any_of(classes_.begin(), classes_.end(),
                    [](const HeadClass& entry) { return entry.part.needs_unrotated_keys(); }))
      expect(block.k_unrotated, {shape_.heads_kv, rows, shape_.dim}, "k_unrotated");
    if (block.hidden.defined())
      expect(block.hidden, {rows, block.hidden.rank() == 2 ? block.hidden.dim(1) : 0}, "hidden");
    require(block.position == length_, "cache: a block at position ", block.position, " does not continue ",
            length_, " tokens");
  }

  template <typename Body>
  kernels::AttentionResult over_classes(const Tensor& q, const KvBlock& block, bool prompt,
                                        const Body& body) {
    kernels::AttentionResult result;
    const int64_t group = shape_.heads_q / shape_.heads_kv, rows = q.dim(2);
    if (classes_.size() > 1)
      result = {Tensor::empty({1, shape_.heads_q, rows, shape_.dim_v}),
                Tensor::empty({1, shape_.heads_q, rows})};
    for (auto& entry : classes_) {
      const auto take = [&](const Tensor& x) {
        return x.defined() ? take_heads(x, 0, entry.heads, 1) : Tensor();
      };
      const NewRows part_rows{take(block.k), take(block.k_unrotated), take(block.v),
                              block.hidden,  block.position,          prompt};
      auto part = body(entry.part, take_heads(q, 1, entry.heads, group), part_rows);
      if (classes_.size() == 1) {
        result = std::move(part);
        break;
      }
      for (size_t i = 0; i < entry.heads.size(); ++i) {
        const int64_t from = static_cast<int64_t>(i) * group, to = entry.heads[i] * group;
        result.o.slice(1, to, to + group).copy_from(part.o.slice(1, from, from + group));
        result.lse.slice(1, to, to + group).copy_from(part.lse.slice(1, from, from + group));
      }
    }
    length_ += rows;
    return result;
  }

  CacheSpec spec_;
  CacheShape shape_;
  std::vector<HeadClass> classes_;  // of heads that keep everything, and of those that stream
  int64_t length_ = 0;
};

}  // namespace

std::unique_ptr<KvCache> make_cache(const CacheSpec& spec, const CacheShape& shape) {
  require(shape.heads_kv >= 1 && shape.heads_q >= 1 && shape.heads_q % shape.heads_kv == 0,
          "cache: ", shape.heads_q, " query heads cannot share ", shape.heads_kv, " kv heads");
  require(shape.dim >= 1 && shape.dim_v >= 1, "cache: head dimensions ", shape.dim, " and ", shape.dim_v,
          " should be at least 1");
  require(spec.streaming.empty() || static_cast<int64_t>(spec.streaming.size()) == shape.heads_kv,
          "cache: streaming has ", spec.streaming.size(), " flags for ", shape.heads_kv, " kv heads");
  return std::make_unique<ComposedCache>(spec, shape);
}

}  // namespace fovea::cache
