// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "fovea/kernels/linear_scan.h"

/// The linear scan and its gradients in double precision, token by token: the oracle of its tests.
namespace fovea::reference {

struct ScanInputs {
  Tensor q, k, v;  // any float type, any strides
  kernels::LinearScanParams params;
};

/// A row-major array of doubles, filled from a tensor.
struct Doubles {
  Shape shape;
  std::vector<double> values;

  explicit Doubles(const Shape& of) : shape(of), values(static_cast<size_t>(of.count())) {}
  explicit Doubles(const Tensor& from) : Doubles(from.shape()) {
    const Tensor dense = from.to(DType::f32).contiguous();
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(dense.data<float>()[i]);
  }
  template <typename... I>
  double& at(I... index) {
    int64_t offset = 0;
    int axis = 0;
    ((offset = offset * shape[axis++] + static_cast<int64_t>(index)), ...);
    return values[static_cast<size_t>(offset)];
  }
  Tensor tensor() const { return Tensor::from(std::vector<float>(values.begin(), values.end()), shape); }
};

struct ScanGradients {
  Doubles dq, dk, dv, d_log_decay, d_beta, d_state;
};

/// All intermediate states, so that gradients can be taken.
class Scan {
 public:
  explicit Scan(const ScanInputs& in)
      : q(in.q),
        k(in.k),
        v(in.v),
        o({q.shape[0], q.shape[1], q.shape[2], v.shape[3]}),
        state({k.shape[0], k.shape[1], k.shape[3], v.shape[3]}),
        params_(in.params),
        log_decay_(params_.log_decay ? Doubles(params_.log_decay) : Doubles(Shape{0})),
        beta_(params_.beta ? Doubles(params_.beta) : Doubles(Shape{0})) {
    if (params_.state) state = Doubles(params_.state);
    for (int64_t b = 0; b < batch(); ++b)
      for (int64_t h = 0; h < heads(); ++h) run(b, h);
  }

  ScanGradients gradients(const Tensor& d_o, const Tensor& d_final_state) {
    ScanGradients g{Doubles(q.shape),     Doubles(k.shape),
                    Doubles(v.shape),     Doubles(log_decay_.shape),
                    Doubles(beta_.shape), d_final_state ? Doubles(d_final_state) : Doubles(state.shape)};
    Doubles gradient_o(d_o);
    for (int64_t b = 0; b < batch(); ++b)
      for (int64_t h = 0; h < heads(); ++h)
        for (int64_t t = length() - 1; t >= 0; --t) step_back(b, h, t, gradient_o, g);
    return g;
  }

  Doubles q, k, v, o, state;

 private:
  int64_t batch() const { return k.shape[0]; }
  int64_t heads() const { return k.shape[1]; }
  int64_t length() const { return k.shape[2]; }
  int64_t dim() const { return k.shape[3]; }
  int64_t dim_v() const { return v.shape[3]; }
  int64_t group() const { return q.shape[1] / heads(); }

  double* log_decay(Doubles& of, int64_t b, int64_t h, int64_t t, int64_t c) const {
    if (of.shape.rank() == 4) return &of.at(b, h, t, c);
    if (of.shape.rank() == 3) return &of.at(b, h, t);
    return params_.log_decay ? &of.at(h) : nullptr;
  }
  double decay(int64_t b, int64_t h, int64_t t, int64_t c) {
    const double* log = log_decay(log_decay_, b, h, t, c);
    return log ? std::exp(*log) : 1.0;
  }
  double beta(int64_t b, int64_t h, int64_t t) { return params_.beta ? beta_.at(b, h, t) : 1.0; }

  // The decayed state S', and e = v - delta k S'.
  std::vector<double> decayed(int64_t b, int64_t h, int64_t t, const std::vector<double>& before) {
    std::vector<double> s = before;
    for (int64_t c = 0; c < dim(); ++c)
      for (int64_t x = 0; x < dim_v(); ++x) {
        double& value = s[static_cast<size_t>(c * dim_v() + x)];
        const double a = decay(b, h, t, c);
        value = a == 0 ? 0 : a * value;
      }
    return s;
  }
  std::vector<double> error(int64_t b, int64_t h, int64_t t, const std::vector<double>& s) {
    std::vector<double> e(static_cast<size_t>(dim_v()));
    for (int64_t x = 0; x < dim_v(); ++x) {
      double sum = v.at(b, h, t, x);
      for (int64_t c = 0; params_.delta && c < dim(); ++c)
        sum -= k.at(b, h, t, c) * s[static_cast<size_t>(c * dim_v() + x)];
      e[static_cast<size_t>(x)] = sum;
    }
    return e;
  }

  void run(int64_t b, int64_t h) {
    std::vector<double> s(static_cast<size_t>(dim() * dim_v()));
    for (int64_t c = 0; c < dim(); ++c)
      for (int64_t x = 0; x < dim_v(); ++x) s[static_cast<size_t>(c * dim_v() + x)] = state.at(b, h, c, x);
    states_.push_back(s);
    for (int64_t t = 0; t < length(); ++t) {
      s = decayed(b, h, t, s);
      const std::vector<double> e = error(b, h, t, s);
      for (int64_t c = 0; c < dim(); ++c)
        for (int64_t x = 0; x < dim_v(); ++x)
          s[static_cast<size_t>(c * dim_v() + x)] +=
              beta(b, h, t) * k.at(b, h, t, c) * e[static_cast<size_t>(x)];
      states_.push_back(s);
      for (int64_t head = h * group(); head < (h + 1) * group(); ++head)
        for (int64_t x = 0; x < dim_v(); ++x) {
          double sum = 0;
          for (int64_t c = 0; c < dim(); ++c)
            sum += q.at(b, head, t, c) * s[static_cast<size_t>(c * dim_v() + x)];
          o.at(b, head, t, x) = static_cast<double>(params_.scale) * sum;
        }
    }
    for (int64_t c = 0; c < dim(); ++c)
      for (int64_t x = 0; x < dim_v(); ++x) state.at(b, h, c, x) = s[static_cast<size_t>(c * dim_v() + x)];
  }

  void step_back(int64_t b, int64_t h, int64_t t, Doubles& d_o, ScanGradients& g) {
    const auto index = static_cast<size_t>((b * heads() + h) * (length() + 1) + t);
    const std::vector<double>&before = states_[index], &after = states_[index + 1];
    const std::vector<double> s = decayed(b, h, t, before), e = error(b, h, t, s);
    const double scale = static_cast<double>(params_.scale), weight = beta(b, h, t);
    const auto d_state = [&](int64_t c, int64_t x) -> double& { return g.d_state.at(b, h, c, x); };
    for (int64_t head = h * group(); head < (h + 1) * group(); ++head)
      for (int64_t c = 0; c < dim(); ++c)
        for (int64_t x = 0; x < dim_v(); ++x) {
          const double gradient = scale * d_o.at(b, head, t, x);
          g.dq.at(b, head, t, c) += gradient * after[static_cast<size_t>(c * dim_v() + x)];
          d_state(c, x) += gradient * q.at(b, head, t, c);
        }
    for (int64_t x = 0; x < dim_v(); ++x) {
      double write = 0;
      for (int64_t c = 0; c < dim(); ++c) {
        write += d_state(c, x) * k.at(b, h, t, c);
        g.dk.at(b, h, t, c) += weight * d_state(c, x) * e[static_cast<size_t>(x)];
      }
      if (params_.beta) g.d_beta.at(b, h, t) += write * e[static_cast<size_t>(x)];
      const double d_error = weight * write;
      g.dv.at(b, h, t, x) += d_error;
      for (int64_t c = 0; params_.delta && c < dim(); ++c) {
        g.dk.at(b, h, t, c) -= d_error * s[static_cast<size_t>(c * dim_v() + x)];
        d_state(c, x) -= d_error * k.at(b, h, t, c);
      }
    }
    for (int64_t c = 0; c < dim(); ++c) {
      const double a = decay(b, h, t, c);
      double sum = 0;
      for (int64_t x = 0; x < dim_v(); ++x) {
        sum += d_state(c, x) * before[static_cast<size_t>(c * dim_v() + x)];
        d_state(c, x) *= a;
      }
      if (double* to = log_decay(g.d_log_decay, b, h, t, c)) *to += a == 0 ? 0 : a * sum;
    }
  }

  kernels::LinearScanParams params_;
  Doubles log_decay_, beta_;
  std::vector<std::vector<double>> states_;  // of each head: before token 0, after it, ...
};

}  // namespace fovea::reference
