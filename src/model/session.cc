// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/session.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "fovea/cache/duo_attention.h"
#include "fovea/cache/kv_cache.h"
#include "fovea/core/error.h"
#include "fovea/io/npy.h"
#include "fovea/io/safetensors.h"
#include "fovea/model/recipe_build.h"
#include "fovea/model/transformer.h"
#include "fovea/sparse/planner.h"

namespace fovea::model {
namespace {

constexpr int64_t kLargestChunk = 8192;
// A streaming head sees all of its own chunk: only in chunks does it save work.
constexpr int64_t kStreamingChunk = 2048;
constexpr int64_t kLogitRows = 64;  // rows of logits made at a time when all are asked for

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Tensor read_gates(const std::string& path) {
  if (path.ends_with(".npy")) return io::read_npy(path);
  const auto file = io::read_safetensors(path);
  require(file.tensors.contains("alpha"), path, ": has no tensor 'alpha'");
  return file.tensors["alpha"];
}

/// Which kv heads stream, u8 [L,Hkv].
Tensor streaming_heads(const Model& model, const DuoHeadsOptions& duo) {
  const ModelConfig& config = model.config();
  const Tensor gates = duo.gates.empty() ? model.head_gates(duo.sink, duo.recent) : read_gates(duo.gates);
  const Shape expected{config.layers, config.heads_kv};
  require(gates.shape() == expected && is_float(gates.dtype()), "heads=duo: the gates are ", gates.describe(),
          ", expected floats ", expected.to_string());
  const Tensor heads = cache::duo_heads(gates.to(DType::f32), {.sparsity = duo.sparsity}).clone();
  for (int64_t i = 0; i < heads.size(); ++i) heads.data<uint8_t>()[i] ^= 1;  // 1 were the retrieval heads
  return heads;
}

std::vector<std::unique_ptr<cache::KvCache>> make_caches(const Model& model, const Recipe& recipe,
                                                         const Rope& rope) {
  const ModelConfig& config = model.config();
  cache::CacheSpec spec = cache_spec(recipe);
  const auto duo = duo_heads(recipe);
  const Tensor streaming = duo ? streaming_heads(model, *duo) : Tensor();
  std::vector<std::unique_ptr<cache::KvCache>> caches;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (streaming) {
      const uint8_t* row = streaming.data<uint8_t>() + layer * config.heads_kv;
      spec.streaming.assign(row, row + config.heads_kv);
    }
    caches.push_back(cache::make_cache(spec, {.heads_q = config.heads_q,
                                              .heads_kv = config.heads_kv,
                                              .dim = config.dim,
                                              .dim_v = config.dim,
                                              .rope_frequencies = rope.frequencies,
                                              .rope_magnitude = rope.magnitude,
                                              .layer = layer,
                                              .layers = config.layers}));
  }
  return caches;
}

}  // namespace

struct Session::State {
  std::shared_ptr<const Model> model;
  Recipe recipe;
  int64_t context, chunk;
  std::shared_ptr<const sparse::Planner> planner;
  Transformer transformer;
  std::vector<std::unique_ptr<cache::KvCache>> caches;  // one per layer
  int64_t length = 0;
  SessionTimes times;
  PrefillObserver observer;
  Tensor logits;  // [R,V]

  State(std::shared_ptr<const Model> shared_model, const Recipe& wanted, const SessionOptions& options)
      : model(std::move(shared_model)),
        recipe(wanted),
        context(options.context > 0 ? options.context : model->config().context),
        chunk(options.chunk > 0                                 ? options.chunk
              : !wanted.heads.empty() && wanted.prefill.empty() ? kStreamingChunk
                                                                : kLargestChunk),
        planner(make_planner(recipe)),
        transformer(model->weights(), model->config(),
                    make_rope(model->config().rope_scaling, model->config().dim, model->config().rope_theta,
                              context)),
        caches(make_caches(*model, recipe, transformer.rope())) {
    require(context <= model->config().context, "context = ", context, ": the model was made for ",
            model->config().context, " tokens");
  }

  State(const State& other)
      : model(other.model),
        recipe(other.recipe),
        context(other.context),
        chunk(other.chunk),
        planner(other.planner),
        transformer(model->weights(), model->config(), other.transformer.rope()),
        length(other.length),
        times(other.times) {
    for (const auto& cache : other.caches) caches.push_back(cache->fork());
  }
  State& operator=(const State&) = delete;

  void check(std::span<const int32_t> tokens, const char* what) const {
    require(!tokens.empty(), what, ": no tokens were given");
    require(static_cast<int64_t>(tokens.size()) <= context - length, what, ": ", length, " + ", tokens.size(),
            " tokens exceed the context of ", context);
    for (const int32_t token : tokens)
      require(token >= 0 && token < model->config().vocabulary, what, ": token ", token,
              " is outside the vocabulary of ", model->config().vocabulary);
  }

  Tensor logits_of(const Tensor& hidden) {
    const int64_t rows = hidden.dim(0);
    if (!logits || logits.dim(0) < rows) logits = Tensor::empty({rows, model->config().vocabulary});
    const Tensor out = logits.slice(0, 0, rows);
    transformer.logits(hidden, out);
    return out;
  }

  kernels::AttentionResult attend_prefill(int64_t layer, const Tensor& q, const Tensor& k,
                                          const Tensor& v) const {
    if (observer) {
      const kernels::KeyPlan plan = planner ? planner->plan(q, k) : kernels::KeyPlan{};
      observer({layer, q, k, planner ? &plan : nullptr});
    }
    if (planner) return planner->attend(q, k, v);
    return kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
  }

  Tensor read_chunk(std::span<const int32_t> tokens) {
    Tensor hidden =
        transformer.run(tokens, length, [&](int64_t layer, const Tensor& q, const cache::KvBlock& block) {
          return caches[static_cast<size_t>(layer)]->prefill(
              q, block, [&, layer](const Tensor& queries, const Tensor& keys, const Tensor& values) {
                return attend_prefill(layer, queries, keys, values);
              });
        });
    length += static_cast<int64_t>(tokens.size());
    return hidden;
  }

  /// Calls read(hidden, first position) after every chunk.
  template <typename Read>
  void prefill(std::span<const int32_t> tokens, const Read& read) {
    check(tokens, "prefill");
    const Stopwatch watch;
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk)) {
      const auto part = tokens.subspan(begin, std::min(static_cast<size_t>(chunk), tokens.size() - begin));
      const int64_t first = length;
      read(read_chunk(part), first);
    }
    times.prefill_seconds += watch.seconds();
    times.prefill_tokens += static_cast<int64_t>(tokens.size());
  }
};

Session::Session(std::shared_ptr<const Model> model, const Recipe& recipe, const SessionOptions& options) {
  require(model != nullptr, "session: no model was given");
  require(options.context >= 0 && options.chunk >= 0, "session: context = ", options.context,
          ", chunk = ", options.chunk, ": neither may be negative");
  state_ = std::make_unique<State>(std::move(model), recipe, options);
}

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

Tensor Session::prefill(std::span<const int32_t> tokens) {
  Tensor logits;
  const int64_t end = state_->length + static_cast<int64_t>(tokens.size());
  state_->prefill(tokens, [&](const Tensor& hidden, int64_t first) {
    const int64_t rows = hidden.dim(0);
    if (first + rows == end) logits = state_->logits_of(hidden.slice(0, rows - 1, rows));
  });
  return logits;
}

void Session::prefill(std::span<const int32_t> tokens, const LogitRows& rows) {
  state_->prefill(tokens, [&](const Tensor& hidden, int64_t first) {
    for (int64_t begin = 0; begin < hidden.dim(0); begin += kLogitRows) {
      const int64_t end = std::min(begin + kLogitRows, hidden.dim(0));
      rows(first + begin, state_->logits_of(hidden.slice(0, begin, end)));
    }
  });
}

Tensor Session::decode(std::span<const int32_t> tokens) {
  State& s = *state_;
  s.check(tokens, "decode");
  const Stopwatch watch;
  const Tensor hidden =
      s.transformer.run(tokens, s.length, [&](int64_t layer, const Tensor& q, const cache::KvBlock& block) {
        return s.caches[static_cast<size_t>(layer)]->decode(q, block);
      });
  s.length += static_cast<int64_t>(tokens.size());
  Tensor logits = s.logits_of(hidden);
  s.times.decode_seconds += watch.seconds();
  s.times.decode_tokens += static_cast<int64_t>(tokens.size());
  return logits;
}

const Model& Session::model() const { return *state_->model; }
const Recipe& Session::recipe() const { return state_->recipe; }
int64_t Session::length() const { return state_->length; }
int64_t Session::chunk() const { return state_->chunk; }
int64_t Session::context() const { return state_->context; }
SessionTimes Session::times() const { return state_->times; }

int64_t Session::kv_bytes() const {
  int64_t total = 0;
  for (const auto& cache : state_->caches) total += cache->bytes();
  return total;
}

int64_t Session::bytes_read() const {
  int64_t total = 0;
  for (const auto& cache : state_->caches) total += cache->bytes_read();
  return total;
}

void Session::truncate(int64_t length) {
  require(length >= 0 && length <= state_->length, "truncate: ", length, " is outside 0..", state_->length);
  for (auto& cache : state_->caches) cache->truncate(length);
  state_->length = length;
}

Session Session::fork() const { return Session(std::make_unique<State>(*state_)); }

void Session::observe(PrefillObserver observer) { state_->observer = std::move(observer); }

}  // namespace fovea::model
