// SPDX-License-Identifier: Apache-2.0
// Frequencies f_m = theta^(-2m/R), m = 0 .. R/2-1, and what each scaling makes of them (s = factor):
//
//   linear   f_m / s
//   ntk      theta' = theta s^(R/(R-2))
//   dynamic  theta' = theta (s n/n0 - (s-1))^(R/(R-2)), n = max(context, n0), n0 the training context
//   yarn     f_m ((1-r_m)/s + r_m), r_m falls from 1 to 0 between the channels that make beta_fast and
//            beta_slow rotations over n0; cosines and sines times 0.1 ln s + 1 (Peng et al. 2023,
//            arXiv 2309.00071)
//   llama3   by rotations t = n0 f_m / 2pi over the training context: f_m where t > high, f_m / s where t <
//   low,
//            between them f_m ((1-u)/s + u), u = (t - low)/(high - low)
#include "fovea/model/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

/// The (real) channel pair that makes `rotations` turns over `context` tokens.
double pair_of_rotations(double rotations, int64_t rotated, double theta, double context) {
  return static_cast<double>(rotated) * std::log(context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

/// Share of the unscaled frequency that pair m keeps under yarn: 1 at and below `low`, 0 at and above `high`.
struct Ramp {
  double low, high;
  double kept(double m) const { return 1 - std::clamp((m - low) / (high - low), 0.0, 1.0); }
};

Ramp yarn_ramp(const RopeScaling& s, int64_t rotated, double theta) {
  double low = pair_of_rotations(s.beta_fast, rotated, theta, s.original_context);
  double high = pair_of_rotations(s.beta_slow, rotated, theta, s.original_context);
  if (s.whole_channels) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rotated - 1));
  return {low, std::max(high, low + 0.001)};
}

double llama3_share(const RopeScaling& s, double frequency) {
  const double turns = s.original_context * frequency / (2 * std::numbers::pi);
  return std::clamp((turns - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor),
                    0.0, 1.0);
}

double scaled_theta(const RopeScaling& s, int64_t rotated, double theta, int64_t context) {
  const double power = static_cast<double>(rotated) / static_cast<double>(rotated - 2);
  if (s.kind == RopeScaling::Kind::ntk) return theta * std::pow(s.factor, power);
  if (s.kind != RopeScaling::Kind::dynamic) return theta;
  const double ratio = std::max(static_cast<double>(context), s.original_context) / s.original_context;
  return theta * std::pow(s.factor * ratio - (s.factor - 1), power);
}

}  // namespace

RopeScaling::Kind parse_rope_scaling(const std::string& name, const std::string& origin) {
  if (name == "none" || name == "default" || name.empty()) return RopeScaling::Kind::none;
  if (name == "linear") return RopeScaling::Kind::linear;
  if (name == "ntk") return RopeScaling::Kind::ntk;
  if (name == "dynamic") return RopeScaling::Kind::dynamic;
  if (name == "yarn") return RopeScaling::Kind::yarn;
  if (name == "llama3") return RopeScaling::Kind::llama3;
  throw Error(origin + ": rope scaling '" + name +
                  "' is not supported (none, linear, ntk, dynamic, yarn, llama3 are)",
              ErrorCode::unsupported);
}

Rope make_rope(const RopeScaling& s, int64_t rotated, double theta, int64_t context) {
  require(rotated >= 2 && rotated % 2 == 0, "rope: ", rotated, " rotated channels, expected an even number");
  require(std::isfinite(theta) && theta > 1, "rope: base ", theta, " is not above 1");
  require(std::isfinite(s.factor) && s.factor > 0, "rope: scaling factor ", s.factor, " is not above 0");
  const bool needs_context = s.kind == RopeScaling::Kind::dynamic || s.kind == RopeScaling::Kind::yarn ||
                             s.kind == RopeScaling::Kind::llama3;
  require(!needs_context || s.original_context >= 1,
          "rope: this scaling needs the training context (original_max_position_embeddings)");
  require(s.kind != RopeScaling::Kind::llama3 || s.high_frequency_factor > s.low_frequency_factor,
          "rope: llama3 scaling needs high_freq_factor above low_freq_factor");
  require(s.kind != RopeScaling::Kind::yarn || (s.beta_fast > 0 && s.beta_slow > 0),
          "rope: yarn scaling needs beta_fast and beta_slow above 0");
  require((s.kind != RopeScaling::Kind::ntk && s.kind != RopeScaling::Kind::dynamic) || rotated > 2,
          "rope: ntk and dynamic scaling need more than 2 rotated channels");
  const int64_t pairs = rotated / 2;
  require(s.divisors.empty() || static_cast<int64_t>(s.divisors.size()) == pairs, "rope: ", s.divisors.size(),
          " frequency divisors for ", pairs, " pairs");

  const double base = scaled_theta(s, rotated, theta, context);
  const Ramp ramp = s.kind == RopeScaling::Kind::yarn ? yarn_ramp(s, rotated, theta) : Ramp{0, 1};
  Rope rope{Tensor::empty({pairs}), 1};
  for (int64_t m = 0; m < pairs; ++m) {
    const double f = std::pow(base, -2.0 * static_cast<double>(m) / static_cast<double>(rotated));
    double kept = 1;  // share of f that is not interpolated
    if (s.kind == RopeScaling::Kind::linear) kept = 0;
    if (s.kind == RopeScaling::Kind::yarn) kept = ramp.kept(static_cast<double>(m));
    if (s.kind == RopeScaling::Kind::llama3) kept = llama3_share(s, f);
    const double divisor = s.divisors.empty() ? 1.0 : static_cast<double>(s.divisors[static_cast<size_t>(m)]);
    require(divisor > 0, "rope: frequency divisor ", divisor, " of pair ", m, " is not above 0");
    rope.frequencies.at<float>(m) = static_cast<float>(f * ((1 - kept) / s.factor + kept) / divisor);
  }
  if (s.kind == RopeScaling::Kind::yarn)
    rope.magnitude = static_cast<float>(s.magnitude > 0 ? s.magnitude
                                        : s.factor > 1  ? 0.1 * std::log(s.factor) + 1
                                                        : 1.0);
  return rope;
}

}  // namespace fovea::model
