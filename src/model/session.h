// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "fovea/core/tensor.h"
#include "fovea/kernels/key_plan.h"
#include "fovea/model/model.h"
#include "fovea/model/recipe.h"

namespace fovea::model {

struct SessionOptions {
  int64_t context = 0;  ///< tokens the session may hold; 0: what the model was made for
  /// Prompt tokens that go through the layers at once. 0: the whole prompt, at most 8192, since planners
  /// judge by its last rows; with heads=duo and no planner 2048, since a streaming head sees all of its own
  /// chunk.
  int64_t chunk = 0;
};

/// What one layer's attention saw of a prompt chunk: q [1,Hq,T,D] and k [1,Hkv,Tk,D] after rope, the rows
/// being the last T keys, and the planner's plan (nullptr: exact attention). Valid during the call.
struct PrefillView {
  int64_t layer;
  const Tensor& q;
  const Tensor& k;
  const kernels::KeyPlan* plan;
};
using PrefillObserver = std::function<void(const PrefillView&)>;

/// Logits [n,V] of the tokens at first_position .. first_position + n - 1. Valid during the call.
using LogitRows = std::function<void(int64_t first_position, const Tensor& logits)>;

/// Wall-clock seconds and tokens since the session began.
struct SessionTimes {
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;
};

/// One sequence running through a model with the attention that a recipe describes. Not thread-safe; sessions
/// of one model are independent. Results do not depend on the number of threads.
class Session {
 public:
  /// Throws Error for a recipe that the model cannot run. `heads=duo` without a gates file measures the heads
  /// (Model::head_gates), which takes a pass over a calibration text.
  explicit Session(std::shared_ptr<const Model> model, const Recipe& recipe = {},
                   const SessionOptions& options = {});
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Reads a prompt, or more of one, and returns the logits [1,V] of its last token: a buffer that the next
  /// call overwrites. Throws Error for an empty prompt and for one that exceeds the context; the session is
  /// then as before.
  Tensor prefill(std::span<const int32_t> tokens);
  /// The same, handing out the logits of every token a few rows at a time, in order.
  void prefill(std::span<const int32_t> tokens, const LogitRows& rows);
  /// Appends one token, or a few speculated ones, each of which reads the cache up to itself: logits [T,V], a
  /// buffer that the next call overwrites.
  Tensor decode(std::span<const int32_t> tokens);

  const Model& model() const;
  const Recipe& recipe() const;
  /// Tokens seen, and the most there may be.
  int64_t length() const;
  int64_t context() const;
  /// Prompt tokens that go through the layers at once.
  int64_t chunk() const;
  /// Bytes that hold keys and values now, and that the last decode read of them, over all layers.
  int64_t kv_bytes() const;
  int64_t bytes_read() const;
  SessionTimes times() const;

  /// Forgets the tokens from position `length` on. Throws Error where a retention has dropped what would be
  /// needed.
  void truncate(int64_t length);
  /// An independent session that continues from the same state; the observer is not copied.
  Session fork() const;
  /// Called for every layer of every prompt chunk; an empty function ends it. A planner plans twice while
  /// observed.
  void observe(PrefillObserver observer);

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fovea::model
