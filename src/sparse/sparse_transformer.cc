// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/sparse_transformer.h"

#include <algorithm>

#include "fovea/core/catalogue.h"
#include "fovea/sparse/attention_parts.h"

// Sparse Transformer. With l = stride, c = summary, g the head's group of summary columns, i a row's absolute
// position:
//
//   strided  A1(i) = { j : i-l <= j <= i }               A2(i) = { j <= i : (i-j) mod l = 0 }
//   fixed    A1(i) = { j <= i : j div l = i div l }      A2(i) = { j <= i : l-(g+1)c <= j mod l < l-gc } + {
//   i }
//
// The paper's public kernel has a band of l keys; here it has l+1, as in the paper's formula. Strided columns
// become l dense causal problems, one for each residue class of positions modulo l, on strided views of the
// same tensors. Pieces that are merged never share a key.

namespace fovea::sparse {
namespace {

using kernels::AttentionGradients;
using kernels::AttentionResult;
using kernels::Visibility;

// One head range of a call, in the coordinates of both axes.
struct Span {
  int64_t head_begin, head_end, queries, keys;

  int64_t offset() const { return keys - queries; }
  AttentionPart part(Progression rows, Progression columns, Visibility visible) const {
    return {head_begin, head_end, rows, columns, visible, {}};
  }
};

AttentionLayer strided_band(const Span& span, int64_t stride) {
  return {span.part({0, span.queries}, {0, span.keys}, {.window_left = stride, .window_right = 0})};
}

// One part for each residue class. `skipped` drops that many nearest class members (the row itself and the
// key a stride back), which the band has already: the class's keys end that much earlier, so the alignment of
// rows moves with them.
AttentionLayer strided_columns(const Span& span, int64_t stride, int64_t skipped) {
  AttentionLayer layer;
  for (int64_t residue = 0; residue < std::min(stride, span.keys); ++residue) {
    const int64_t members = (span.keys - residue + stride - 1) / stride;
    const int64_t last =
        residue + (members - 1) * stride;  // absolute position of the class's last row and key
    const int64_t first_row = (last - span.offset()) % stride;
    const int64_t key_end = std::max<int64_t>(residue, last + 1 - skipped * stride);
    if (last - span.offset() < 0) continue;
    layer.push_back(span.part({first_row, last - span.offset() + 1, stride}, {residue, key_end, stride},
                              Visibility::causal()));
  }
  return layer;
}

// Calls visit(period, rows, end) for every period with rows; `end` is the first position after it.
template <typename Visit>
void for_each_period(const Span& span, int64_t stride, Visit visit) {
  for (int64_t period = 0; period * stride < span.keys; ++period) {
    const int64_t end = std::min((period + 1) * stride, span.keys);
    const Progression rows{std::max<int64_t>(0, period * stride - span.offset()),
                           std::max<int64_t>(0, end - span.offset())};
    if (!rows.empty()) visit(period, rows, end);
  }
}

AttentionLayer fixed_blocks(const Span& span, int64_t stride) {
  AttentionLayer layer;
  for_each_period(span, stride, [&](int64_t period, Progression rows, int64_t end) {
    layer.push_back(span.part(rows, {period * stride, end}, Visibility::causal()));
  });
  return layer;
}

bool is_summary(int64_t j, const FixedOptions& o, int64_t group) {
  const int64_t phase = j % o.stride;
  return phase >= o.stride - (group + 1) * o.summary && phase < o.stride - group * o.summary;
}

// Summary columns; `own_period` includes those of the row's own period.
AttentionLayer fixed_columns(const Span& span, const FixedOptions& o, int64_t group, bool own_period) {
  AttentionLayer layer;
  for_each_period(span, o.stride, [&](int64_t period, Progression rows, int64_t end) {
    const int64_t stop = own_period ? end : period * o.stride;
    std::vector<int32_t> columns;
    for (int64_t base = 0; base < stop; base += o.stride)
      for (int64_t j = base + o.stride - (group + 1) * o.summary;
           j < std::min(stop, base + o.stride - group * o.summary); ++j)
        columns.push_back(static_cast<int32_t>(j));
    AttentionPart part = span.part(rows, {0, end}, Visibility::causal());
    part.columns = std::move(columns);
    layer.push_back(std::move(part));
  });
  return layer;
}

// The row's own key, where it is not a summary column: rows of one phase of the period at a time.
AttentionLayer fixed_self(const Span& span, const FixedOptions& o, int64_t group) {
  AttentionLayer layer;
  for_each_period(span, o.stride, [&](int64_t period, Progression rows, int64_t end) {
    const int64_t low =
        std::clamp(period * o.stride + o.stride - (group + 1) * o.summary, period * o.stride, end);
    const int64_t high = std::clamp(period * o.stride + o.stride - group * o.summary, period * o.stride, end);
    for (const auto& [from, to] : {std::pair{rows.begin + span.offset(), low}, std::pair{high, end}}) {
      const int64_t first = std::max(from, rows.begin + span.offset());
      if (first < to)
        layer.push_back(span.part({first - span.offset(), to - span.offset()}, {first, to},
                                  {.window_left = 0, .window_right = 0}));
    }
  });
  return layer;
}

enum class Set { first, second, both };

Set set_of_head(const std::string& combine, int64_t head) {
  if (combine == "first") return Set::first;
  if (combine == "second") return Set::second;
  if (combine == "heads") return head % 2 == 0 ? Set::first : Set::second;
  return Set::both;
}

// Appends a head range's layers: layer n of one range runs together with layer n of the others.
void append_layers(std::vector<AttentionLayer>& all, std::vector<AttentionLayer> mine) {
  if (all.size() < mine.size()) all.resize(mine.size());
  for (size_t n = 0; n < mine.size(); ++n) all[n].insert(all[n].end(), mine[n].begin(), mine[n].end());
}

std::vector<AttentionLayer> strided_layers(int64_t heads, int64_t queries, int64_t keys,
                                           const StridedOptions& o) {
  const bool by_head = o.combine == "heads";
  std::vector<AttentionLayer> layers;
  for (int64_t head = 0; head < heads; head += by_head ? 1 : heads) {
    const Span span{head, by_head ? head + 1 : heads, queries, keys};
    switch (set_of_head(o.combine, head)) {
      case Set::first:
        append_layers(layers, {strided_band(span, o.stride)});
        break;
      case Set::second:
        append_layers(layers, {strided_columns(span, o.stride, 0)});
        break;
      case Set::both:
        append_layers(layers, {strided_band(span, o.stride), strided_columns(span, o.stride, 2)});
        break;
    }
  }
  return layers;
}

std::vector<AttentionLayer> fixed_layers(int64_t heads, int64_t queries, int64_t keys,
                                         const FixedOptions& o) {
  const bool by_head = o.combine == "heads" || o.spread > 1;
  std::vector<AttentionLayer> layers;
  for (int64_t head = 0; head < heads; head += by_head ? 1 : heads) {
    const Span span{head, by_head ? head + 1 : heads, queries, keys};
    const int64_t group = head % o.spread;
    switch (set_of_head(o.combine, head)) {
      case Set::first:
        append_layers(layers, {fixed_blocks(span, o.stride)});
        break;
      case Set::second:
        append_layers(layers, {fixed_columns(span, o, group, true), fixed_self(span, o, group)});
        break;
      case Set::both:
        append_layers(layers, {fixed_blocks(span, o.stride), fixed_columns(span, o, group, false)});
        break;
    }
  }
  return layers;
}

// A plan of single rows: columns(head, i, out) appends the keys of position i, ascending.
template <typename Columns>
KeyPlan row_plan(int64_t heads, int64_t queries, int64_t keys, Columns columns) {
  KeyPlan plan;
  plan.block_q = 1;
  plan.heads = heads;
  plan.queries = queries;
  plan.keys = keys;
  plan.range_offsets.assign(static_cast<size_t>(heads * queries) + 1, 0);
  plan.column_offsets.push_back(0);
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t i = keys - queries; i < keys; ++i) {
      if (i >= 0) columns(head, i, plan.columns);
      plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
    }
  return plan;
}

void append_keys(std::vector<int32_t>& out, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) out.push_back(static_cast<int32_t>(j));
}

}  // namespace

void FixedOptions::validate() const {
  require(summary <= stride, "option summary = ", summary, " exceeds stride = ", stride);
  require(spread * summary <= stride, "option spread = ", spread, " times summary = ", summary,
          " exceeds stride = ", stride);
}

AttentionResult sparse_transformer_strided(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const StridedOptions& options) {
  return attend_layers(q, k, v, strided_layers(q.dim(1), q.dim(2), k.dim(2), options));
}

AttentionResult sparse_transformer_fixed(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const FixedOptions& options) {
  return attend_layers(q, k, v, fixed_layers(q.dim(1), q.dim(2), k.dim(2), options));
}

AttentionGradients sparse_transformer_strided_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                       const Tensor& d_o, const StridedOptions& options) {
  return attend_layers_backward(q, k, v, d_o, strided_layers(q.dim(1), q.dim(2), k.dim(2), options));
}

AttentionGradients sparse_transformer_fixed_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& d_o, const FixedOptions& options) {
  return attend_layers_backward(q, k, v, d_o, fixed_layers(q.dim(1), q.dim(2), k.dim(2), options));
}

KeyPlan plan_sparse_transformer_strided(int64_t heads, int64_t queries, int64_t keys,
                                        const StridedOptions& o) {
  return row_plan(heads, queries, keys, [&](int64_t head, int64_t i, std::vector<int32_t>& out) {
    const Set set = set_of_head(o.combine, head);
    const int64_t band = std::max<int64_t>(0, i - o.stride);
    if (set != Set::first)
      for (int64_t j = i % o.stride; j < (set == Set::both ? band : i + 1); j += o.stride)
        out.push_back(static_cast<int32_t>(j));
    if (set != Set::second) append_keys(out, band, i + 1);
  });
}

KeyPlan plan_sparse_transformer_fixed(int64_t heads, int64_t queries, int64_t keys, const FixedOptions& o) {
  return row_plan(heads, queries, keys, [&](int64_t head, int64_t i, std::vector<int32_t>& out) {
    const Set set = set_of_head(o.combine, head);
    const int64_t group = head % o.spread, period = i / o.stride * o.stride;
    if (set != Set::first)
      for (int64_t base = 0; base < (set == Set::both ? period : i + 1); base += o.stride) {
        const int64_t begin = base + o.stride - (group + 1) * o.summary;
        append_keys(out, begin, std::min(i + 1, begin + o.summary));
      }
    if (set != Set::second)
      append_keys(out, period, i + 1);
    else if (!is_summary(i, o, group))
      out.push_back(static_cast<int32_t>(i));
  });
}

namespace {

template <auto kAttend, auto kPlan, typename Options>
class StaticPlanner : public Planner {
 public:
  explicit StaticPlanner(const Options& options) : options_(options) {}
  KeyPlan plan(const Tensor& q, const Tensor& k) const override {
    return kPlan(q.dim(1), q.dim(2), k.dim(2), options_);
  }
  AttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v) const override {
    return kAttend(q, k, v, options_);
  }

 private:
  Options options_;
};

template <auto kAttend, auto kPlan, typename Options>
PlannerEntry static_planner(const char* name, const char* summary) {
  return {name,
          113,
          summary,
          options::describe<Options>(),
          false,
          [name](const options::Pairs& pairs, std::shared_ptr<const Planner>) -> std::unique_ptr<Planner> {
            return std::make_unique<StaticPlanner<kAttend, kPlan, Options>>(
                options::from_pairs<Options>(pairs, name));
          }};
}

// The three operators of one pattern.
template <typename Options, auto kAttend, auto kPlan, auto kBackward>
void register_pattern(Catalogue& catalogue, const std::string& name, const std::string& what) {
  catalogue.add<Options>(name, Room::sparse, 113)
      .summary("causal attention over " + what)
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float"})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const Options& options) -> Tensors {
        const auto result = kAttend(in["q"], in["k"], in["v"], options);
        return {{"o", result.o}, {"lse", result.lse}};
      });
  catalogue.add<Options>("plan-" + name, Room::sparse, 113)
      .summary("mask of " + what + "; only the shapes of q and k are read")
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float"})
      .outputs({"mask [B,Hq,Tq,Tk] u8"})
      .forms({Form::plan, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const Options& options) -> Tensors {
        const Tensor q = in["q"], k = in["k"];
        const Tensor shared = plan_mask(kPlan(q.dim(1), q.dim(2), k.dim(2), options));
        return {{"mask", shared.expand({q.dim(0), q.dim(1), q.dim(2), k.dim(2)}).clone()}};
      });
  catalogue.add<Options>(name + "-backward", Room::sparse, 113)
      .summary("gradients of " + name)
      .inputs(
          {"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float", "do [B,Hq,Tq,Dv] float"})
      .outputs({"dq [B,Hq,Tq,D] float", "dk [B,Hkv,Tk,D] float", "dv [B,Hkv,Tk,Dv] float"})
      .forms({Form::backward, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const Options& options) -> Tensors {
        const auto gradients = kBackward(in["q"], in["k"], in["v"], in["do"], options);
        return {{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};
      });
}

}  // namespace

void add_sparse_transformer_planners(std::vector<PlannerEntry>& entries) {
  entries.push_back(
      static_planner<sparse_transformer_strided, plan_sparse_transformer_strided, StridedOptions>(
          "sparse-transformer-strided", "a band and every stride-th key"));
  entries.push_back(static_planner<sparse_transformer_fixed, plan_sparse_transformer_fixed, FixedOptions>(
      "sparse-transformer-fixed", "the own period and summary columns of the earlier ones"));
}

void register_sparse_transformer(Catalogue& catalogue) {
  register_pattern<StridedOptions, sparse_transformer_strided, plan_sparse_transformer_strided,
                   sparse_transformer_strided_backward>(catalogue, "sparse-transformer-strided",
                                                        "a band and every stride-th key");
  register_pattern<FixedOptions, sparse_transformer_fixed, plan_sparse_transformer_fixed,
                   sparse_transformer_fixed_backward>(
      catalogue, "sparse-transformer-fixed", "the own period and summary columns of the earlier ones");
}

}  // namespace fovea::sparse
