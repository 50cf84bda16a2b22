// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "fovea/core/tensor.h"

/// Attention computed in double precision straight from the definition: the oracle of every test.
namespace fovea::reference {

/// visible(b, h, i, j): does row i of query head h see key j?
using Visible = std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)>;
/// extra(b, h, i, j): added to the scaled score.
using Extra = std::function<double(int64_t b, int64_t h, int64_t i, int64_t j)>;

struct Problem {
  Tensor q, k, v;    // any float type, any strides
  double scale = 0;  // 0: 1/sqrt(D)
  double softcap = 0;
  Visible visible;           // empty: everything
  Extra extra;               // empty: nothing
  std::vector<double> sink;  // per query head, or empty
};

struct Result {
  Tensor o, lse;  // f32, rounded once at the end
};

inline Visible causal(int64_t tq, int64_t tk) {
  return [=](int64_t, int64_t, int64_t i, int64_t j) { return j <= i + tk - tq; };
}

/// Scores and probabilities of one row.
struct Row {
  std::vector<double> score, probability;
  double lse = -std::numeric_limits<double>::infinity();
};

inline Row row_of(const Problem& p, const Tensor& q, const Tensor& k, int64_t b, int64_t h, int64_t i) {
  const int64_t group = q.dim(1) / k.dim(1), tk = k.dim(2), d = q.dim(3);
  const double scale = p.scale > 0 ? p.scale : 1.0 / std::sqrt(static_cast<double>(d));
  Row row;
  row.score.assign(static_cast<size_t>(tk), -std::numeric_limits<double>::infinity());
  row.probability.assign(static_cast<size_t>(tk), 0.0);
  double maximum = p.sink.empty() ? -std::numeric_limits<double>::infinity() : p.sink[static_cast<size_t>(h)];
  for (int64_t j = 0; j < tk; ++j) {
    if (p.visible && !p.visible(b, h, i, j)) continue;
    double s = 0;
    for (int64_t c = 0; c < d; ++c)
      s +=
          static_cast<double>(q.at<float>(b, h, i, c)) * static_cast<double>(k.at<float>(b, h / group, j, c));
    s *= scale;
    if (p.extra) s += p.extra(b, h, i, j);
    if (p.softcap > 0) s = p.softcap * std::tanh(s / p.softcap);
    row.score[static_cast<size_t>(j)] = s;
    maximum = std::max(maximum, s);
  }
  if (!std::isfinite(maximum)) return row;
  double sum = p.sink.empty() ? 0.0 : std::exp(p.sink[static_cast<size_t>(h)] - maximum);
  for (double s : row.score) sum += std::exp(s - maximum);
  row.lse = maximum + std::log(sum);
  for (size_t j = 0; j < row.score.size(); ++j) row.probability[j] = std::exp(row.score[j] - row.lse);
  return row;
}

inline Result attention(const Problem& p) {
  const Tensor q = p.q.to(DType::f32), k = p.k.to(DType::f32), v = p.v.to(DType::f32);
  const int64_t group = q.dim(1) / k.dim(1), tk = k.dim(2), dv = v.dim(3);
  Result result{Tensor::zeros({q.dim(0), q.dim(1), q.dim(2), dv}),
                Tensor::zeros({q.dim(0), q.dim(1), q.dim(2)})};
  for (int64_t b = 0; b < q.dim(0); ++b)
    for (int64_t h = 0; h < q.dim(1); ++h)
      for (int64_t i = 0; i < q.dim(2); ++i) {
        const Row row = row_of(p, q, k, b, h, i);
        result.lse.at<float>(b, h, i) = static_cast<float>(row.lse);
        for (int64_t c = 0; c < dv; ++c) {
          double sum = 0;
          for (int64_t j = 0; j < tk; ++j)
            if (row.probability[static_cast<size_t>(j)] > 0)
              sum += row.probability[static_cast<size_t>(j)] *
                     static_cast<double>(v.at<float>(b, h / group, j, c));
          result.o.at<float>(b, h, i, c) = static_cast<float>(sum);
        }
      }
  return result;
}

struct Gradients {
  Tensor dq, dk, dv, dsink;  // f32; dsink [Hq] defined only with a sink
  Tensor dextra;             // [B,Hq,Tq,Tk]: of what `extra` adds
};

/// Gradients of sum(o * d_o) + sum(lse * d_lse), from the definition; d_lse [B,Hq,Tq] may be undefined.
inline Gradients attention_backward(const Problem& p, const Tensor& d_o_any, const Tensor& d_lse = {}) {
  const Tensor q = p.q.to(DType::f32), k = p.k.to(DType::f32), v = p.v.to(DType::f32),
               d_o = d_o_any.to(DType::f32);
  const int64_t batch = q.dim(0), heads = q.dim(1), tq = q.dim(2), d = q.dim(3), tk = k.dim(2), dv = v.dim(3);
  const int64_t group = heads / k.dim(1);
  const double scale = p.scale > 0 ? p.scale : 1.0 / std::sqrt(static_cast<double>(d));
  std::vector<double> dq(static_cast<size_t>(q.size())), dk(static_cast<size_t>(k.size())),
      dvv(static_cast<size_t>(v.size())), dsink(p.sink.size());
  const Tensor dextra = Tensor::zeros({batch, heads, tq, tk});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < tq; ++i) {
        const int64_t g = h / group;
        const Row row = row_of(p, q, k, b, h, i);
        std::vector<double> dp(static_cast<size_t>(tk));
        double delta = 0;
        for (int64_t j = 0; j < tk; ++j) {
          const double prob = row.probability[static_cast<size_t>(j)];
          if (prob == 0) continue;
          for (int64_t c = 0; c < dv; ++c) {
            const double go = d_o.at<float>(b, h, i, c);
            dp[static_cast<size_t>(j)] += go * v.at<float>(b, g, j, c);
            dvv[static_cast<size_t>(((b * k.dim(1) + g) * tk + j) * dv + c)] += prob * go;
          }
          delta += prob * dp[static_cast<size_t>(j)];
        }
        if (d_lse) delta -= d_lse.at<float>(b, h, i);
        for (int64_t j = 0; j < tk; ++j) {
          const double prob = row.probability[static_cast<size_t>(j)];
          if (prob == 0) continue;
          double ds = prob * (dp[static_cast<size_t>(j)] - delta);
          if (p.softcap > 0) ds *= 1 - std::pow(row.score[static_cast<size_t>(j)] / p.softcap, 2);
          dextra.at<float>(b, h, i, j) = static_cast<float>(ds);
          for (int64_t c = 0; c < d; ++c) {
            dq[static_cast<size_t>(((b * heads + h) * tq + i) * d + c)] +=
                scale * ds * k.at<float>(b, g, j, c);
            dk[static_cast<size_t>(((b * k.dim(1) + g) * tk + j) * d + c)] +=
                scale * ds * q.at<float>(b, h, i, c);
          }
        }
        if (!p.sink.empty() && std::isfinite(row.lse))
          dsink[static_cast<size_t>(h)] -= std::exp(p.sink[static_cast<size_t>(h)] - row.lse) * delta;
      }
  auto to_tensor = [](const std::vector<double>& values, const Shape& shape) {
    return Tensor::from(std::vector<float>(values.begin(), values.end()), shape);
  };
  return {to_tensor(dq, q.shape()), to_tensor(dk, k.shape()), to_tensor(dvv, v.shape()),
          p.sink.empty() ? Tensor() : to_tensor(dsink, {heads}), dextra};
}

/// ||got - want|| / ||want|| over all elements (float types); infinities must coincide, else the error is
/// infinite.
inline double relative_error(const Tensor& got_any, const Tensor& want_any) {
  if (!(got_any.shape() == want_any.shape())) return std::numeric_limits<double>::infinity();
  const Tensor got = got_any.to(DType::f32).contiguous(), want = want_any.to(DType::f32).contiguous();
  double error = 0, norm = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double x = got.data<float>()[i], y = want.data<float>()[i];
    if (x == y) {
      if (std::isfinite(y)) norm += y * y;
      continue;
    }
    if (!std::isfinite(x) || !std::isfinite(y)) return std::numeric_limits<double>::infinity();
    error += (x - y) * (x - y);
    norm += y * y;
  }
  return std::sqrt(error) / std::max(std::sqrt(norm), 1e-30);
}

}  // namespace fovea::reference
