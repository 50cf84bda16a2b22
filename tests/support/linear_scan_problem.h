// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "fovea/core/rng.h"
#include "tests/support/linear_scan_reference.h"

/// Random linear scans for its tests.
namespace fovea::reference {

struct ScanSizes {
  int64_t batch = 1, heads_q = 1, heads_kv = 1, length = 1, dim = 16, dim_v = 16;

  friend std::ostream& operator<<(std::ostream& out, const ScanSizes& s) {
    return out << "B" << s.batch << " Hq" << s.heads_q << " Hkv" << s.heads_kv << " T" << s.length << " D"
               << s.dim << " Dv" << s.dim_v;
  }
};

/// Which terms a recurrence has. decay: 0 none, 1 of a head, 3 of a token, 4 of a channel (the rank of
/// log_decay).
struct Rule {
  int decay = 0;
  bool delta = false, beta = false, state = false;

  std::string name() const {
    return "decay " + std::to_string(decay) + (delta ? " delta" : "") + (beta ? " beta" : "") +
           (state ? " state" : "");
  }
};

inline std::vector<Rule> all_rules() {
  std::vector<Rule> rules;
  for (int decay : {0, 1, 3, 4})
    for (bool delta : {false, true}) {
      rules.push_back({decay, delta, false, true});
      rules.push_back({decay, delta, true, false});
    }
  return rules;
}

/// Keys have about unit length, so that the delta rule contracts.
inline ScanInputs scan_inputs(const ScanSizes& s, const Rule& rule, uint64_t seed = 1,
                              DType dtype = DType::f32) {
  const Tensor k = random_normal({s.batch, s.heads_kv, s.length, s.dim}, seed, 1);
  for (int64_t i = 0; i < k.size(); ++i) k.data<float>()[i] /= std::sqrt(static_cast<float>(s.dim));
  ScanInputs in{random_normal({s.batch, s.heads_q, s.length, s.dim}, seed, 0).to(dtype),
                k.to(dtype),
                random_normal({s.batch, s.heads_kv, s.length, s.dim_v}, seed, 2).to(dtype),
                {}};
  in.params.scale = 0.3f, in.params.delta = rule.delta;
  const Shape decays = rule.decay == 1   ? Shape{s.heads_kv}
                       : rule.decay == 3 ? Shape{s.batch, s.heads_kv, s.length}
                                         : Shape{s.batch, s.heads_kv, s.length, s.dim};
  if (rule.decay > 0) {
    in.params.log_decay = random_uniform(decays, seed, 3);
    for (int64_t i = 0; i < in.params.log_decay.size(); ++i) in.params.log_decay.data<float>()[i] *= -0.2f;
  }
  if (rule.beta) in.params.beta = random_uniform({s.batch, s.heads_kv, s.length}, seed, 4);
  if (rule.state) in.params.state = random_normal({s.batch, s.heads_kv, s.dim, s.dim_v}, seed, 5);
  return in;
}

/// Tokens [begin, end) of a scan; the initial state only with the first.
inline ScanInputs tokens_of(const ScanInputs& in, int64_t begin, int64_t end) {
  ScanInputs part = in;
  for (Tensor* x : {&part.q, &part.k, &part.v}) *x = x->slice(2, begin, end);
  if (part.params.beta) part.params.beta = part.params.beta.slice(2, begin, end);
  if (part.params.log_decay && part.params.log_decay.rank() > 1)
    part.params.log_decay = part.params.log_decay.slice(2, begin, end);
  if (begin > 0) part.params.state = {};
  return part;
}

}  // namespace fovea::reference
