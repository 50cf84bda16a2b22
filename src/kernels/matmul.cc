// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "fovea/core/error.h"
#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/parallel_rows.h"

namespace fovea::kernels {
namespace {

using cpu::kPanelRows;
using cpu::panels_of;

// Work below this many multiply-adds is not worth waking a thread for.
constexpr int64_t kSmallestTask = 1 << 16;
// Rows of x per task: enough to use a panel many times, few enough to stay in the second-level cache.
constexpr int64_t kRowBlock = 256;

using PanelFunction = std::function<void(int64_t row, int64_t rows, int64_t panel_begin, int64_t panel_end)>;

// Splits y [rows, panels] into tasks of at most kRowBlock rows by a run of panels; never along k.
void for_each_tile(int64_t rows, int64_t panels, int64_t columns, const PanelFunction& body) {
  if (rows == 0 || panels == 0) return;
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int64_t panel_work = std::min(rows, kRowBlock) * columns * kPanelRows;
  const int64_t fewest = std::max<int64_t>(1, kSmallestTask / std::max<int64_t>(1, panel_work));
  const int64_t wanted = std::max<int64_t>(1, 8 * threads() / row_blocks);
  const int64_t run = std::max(fewest, (panels + wanted - 1) / wanted);
  const int64_t runs = (panels + run - 1) / run;
  parallel_for(row_blocks * runs, [&](int64_t task, int) {
    const int64_t row = task / runs * kRowBlock, panel = task % runs * run;
    body(row, std::min(kRowBlock, rows - row), panel, std::min(panels, panel + run));
  });
}

void pack_panels(int64_t rows, int64_t columns, const std::function<void(int64_t panel)>& pack) {
  cpu::parallel_rows(panels_of(rows), kPanelRows * columns, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) pack(panel);
  });
}

void check_product(const Tensor& x, const Tensor& y, int64_t rows, int64_t columns) {
  require(x.rank() == 2 && x.dtype() == DType::f32 && x.dim(1) == columns, "linear: x is ", x.describe(),
          ", expected f32[M,", columns, "]");
  require(y.rank() == 2 && y.dtype() == DType::f32 && y.dim(0) == x.dim(0) && y.dim(1) == rows,
          "linear: y is ", y.describe(), ", expected f32[", x.dim(0), ",", rows, "]");
  require((x.dim(1) <= 1 || x.stride(1) == 1) && (y.dim(1) <= 1 || y.stride(1) == 1),
          "linear: the last axis of x and y must be contiguous");
}

cpu::Output output_of(const Tensor& y, int64_t first_row, bool accumulate = false) {
  return {y.data<float>() + first_row * y.stride(0), y.stride(0), y.dim(1), accumulate};
}

class FloatLinear final : public Linear {
 public:
  explicit FloatLinear(const Tensor& weight) : rows_(weight.dim(0)), columns_(weight.dim(1)) {
    data_.reserve(panels_of(rows_) * kPanelRows * columns_);
    const float* from = weight.data<float>();
    pack_panels(rows_, columns_, [&](int64_t panel) {
      cpu::pack_float_panel(from, weight.stride(0), weight.stride(1), rows_, columns_, panel,
                            data_.data() + panel * kPanelRows * columns_);
    });
  }

  void apply(const Tensor& x, const Tensor& y) const override {
    check_product(x, y, rows_, columns_);
    const float* from = x.data<float>();
    for_each_tile(x.dim(0), panels_of(rows_), columns_,
                  [&](int64_t row, int64_t count, int64_t begin, int64_t end) {
                    cpu::multiply_float({data_.data(), columns_}, begin, end, from + row * x.stride(0),
                                        x.stride(0), count, output_of(y, row));
                  });
  }

  void row(int64_t row, float* out) const override {
    require(row >= 0 && row < rows_, "linear: row ", row, " of ", rows_);
    const float* lane = data_.data() + row / kPanelRows * kPanelRows * columns_ + row % kPanelRows;
    for (int64_t k = 0; k < columns_; ++k) out[k] = lane[k * kPanelRows];
  }

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t bytes() const override { return data_.size() * static_cast<int64_t>(sizeof(float)); }

 private:
  int64_t rows_, columns_;
  memory::Buffer<float> data_;
};

class BFloat16Linear final : public Linear {
 public:
  explicit BFloat16Linear(const Tensor& weight)
      : rows_(weight.dim(0)), columns_(weight.dim(1)), padded_((columns_ + 1) / 2 * 2) {
    data_.reserve(panels_of(rows_) * kPanelRows * padded_);
    pack_panels(rows_, columns_, [&](int64_t panel) { pack(weight, panel); });
  }

  void apply(const Tensor& x, const Tensor& y) const override {
    check_product(x, y, rows_, columns_);
    thread_local memory::Buffer<uint16_t> rounded;
    rounded.reserve(x.dim(0) * padded_);
    uint16_t* const values = rounded.data();
    cpu::parallel_rows(x.dim(0), columns_, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        cpu::round_to_bfloat16(x.data<float>() + row * x.stride(0), columns_, values + row * padded_);
        std::fill(values + row * padded_ + columns_, values + (row + 1) * padded_, uint16_t{0});
      }
    });
    for_each_tile(x.dim(0), panels_of(rows_), columns_,
                  [&](int64_t row, int64_t count, int64_t begin, int64_t end) {
                    cpu::multiply_bfloat16({data_.data(), columns_}, begin, end, values + row * padded_,
                                           count, output_of(y, row));
                  });
  }

  void row(int64_t row, float* out) const override {
    require(row >= 0 && row < rows_, "linear: row ", row, " of ", rows_);
    const uint16_t* lane = lane_of(row);
    for (int64_t k = 0; k < columns_; ++k) out[k] = to_float(BFloat16{lane[place(k)]});
  }

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t bytes() const override { return data_.size() * static_cast<int64_t>(sizeof(uint16_t)); }

 private:
  uint16_t* lane_of(int64_t row) const {
    return data_.data() + row / kPanelRows * kPanelRows * padded_ + row % kPanelRows * 2;
  }
  static int64_t place(int64_t k) { return k / 2 * 2 * kPanelRows + k % 2; }

  void pack(const Tensor& weight, int64_t panel) const {
    const int64_t first = panel * kPanelRows, end = std::min(rows_, first + kPanelRows);
    std::fill_n(lane_of(first), kPanelRows * padded_, uint16_t{0});
    for (int64_t r = first; r < end; ++r) {
      uint16_t* lane = lane_of(r);
      const auto* values =
          static_cast<const char*>(weight.raw()) + r * weight.stride(0) * size_of(weight.dtype());
      for (int64_t k = 0; k < columns_; ++k) lane[place(k)] = value_of(weight, values, k * weight.stride(1));
    }
  }

  static uint16_t value_of(const Tensor& weight, const char* row, int64_t at) {
    if (weight.dtype() == DType::bf16) return reinterpret_cast<const BFloat16*>(row)[at].bits;
    if (weight.dtype() == DType::f16)
      return to_bfloat16(to_float(reinterpret_cast<const Half*>(row)[at])).bits;
    return to_bfloat16(reinterpret_cast<const float*>(row)[at]).bits;
  }

  int64_t rows_, columns_, padded_;
  memory::Buffer<uint16_t> data_;
};

bool all_exact_in_half(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float v) { return to_float(to_half(v)) == v; });
}

class AffineLinear final : public Linear {
 public:
  explicit AffineLinear(const AffineWeight& weight) : rows_(weight.rows) {
    panels_.columns = weight.columns;
    panels_.bits = weight.bits;
    // Groups of any multiple of 16 are runs of groups of 32 or 16 with one scale.
    panels_.group = weight.group % 32 == 0 ? 32 : 16;
    const int64_t scales = weight.scale.size();
    panels_.half_scales = all_exact_in_half(weight.scale.data<float>(), scales) &&
                          all_exact_in_half(weight.offset.data<float>(), scales);
    data_.reserve(panels_of(rows_) * panels_.panel_bytes());
    panels_.data = data_.data();
    pack_panels(rows_, weight.columns, [&](int64_t panel) {
      std::memset(data_.data() + panel * panels_.panel_bytes(), 0,
                  static_cast<size_t>(panels_.panel_bytes()));
      for (int64_t r = panel * kPanelRows; r < std::min(rows_, (panel + 1) * kPanelRows); ++r)
        pack_row(weight, r);
    });
  }

  void apply(const Tensor& x, const Tensor& y) const override {
    check_product(x, y, rows_, panels_.columns);
    const int64_t count = x.dim(0), columns = panels_.columns, groups = panels_.groups();
    thread_local memory::Buffer<int8_t> codes;
    thread_local memory::Buffer<float> scales;
    codes.reserve(count * columns);
    scales.reserve(2 * count * groups);
    const cpu::QuantizedRows quantized{codes.data(), scales.data(), scales.data() + count * groups, columns,
                                       panels_.group};
    cpu::parallel_rows(count, columns, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row)
        cpu::quantize_row(x.data<float>() + row * x.stride(0), row, quantized);
    });
    for_each_tile(count, panels_of(rows_), columns,
                  [&](int64_t row, int64_t block, int64_t begin, int64_t end) {
                    cpu::QuantizedRows part = quantized;
                    part.codes += row * columns;
                    part.scale += row * groups;
                    part.sum += row * groups;
                    cpu::multiply_affine(panels_, begin, end, part, block, output_of(y, row));
                  });
  }

  void row(int64_t row, float* out) const override {
    require(row >= 0 && row < rows_, "linear: row ", row, " of ", rows_);
    const int64_t lane = row % kPanelRows;
    for (int64_t g = 0; g < panels_.groups(); ++g) {
      const uint8_t* block = block_of(row, g);
      const float scale = scale_at(block, lane), offset = scale_at(block, kPanelRows + lane);
      for (int64_t k = 0; k < panels_.group; ++k) {
        const uint8_t byte = block[place(lane, k)];
        const int code = panels_.bits == 8 ? byte : byte >> shift(k) & 15;
        out[g * panels_.group + k] = scale * static_cast<float>(code) + offset;
      }
    }
  }

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return panels_.columns; }
  int64_t bytes() const override { return data_.size(); }

 private:
  const uint8_t* block_of(int64_t row, int64_t g) const {
    return data_.data() + row / kPanelRows * panels_.panel_bytes() + g * panels_.group_bytes();
  }
  // Byte and shift of code k of a group; see AffinePanels.
  int64_t place(int64_t lane, int64_t k) const {
    return (panels_.bits == 4 ? k / 8 : k / 4) * 4 * kPanelRows + lane * 4 + k % 4;
  }
  static int shift(int64_t k) { return k % 8 < 4 ? 0 : 4; }

  float scale_at(const uint8_t* block, int64_t index) const {
    const uint8_t* scales = block + panels_.code_bytes();
    return panels_.half_scales ? to_float(reinterpret_cast<const Half*>(scales)[index])
                               : reinterpret_cast<const float*>(scales)[index];
  }
  void set_scale(uint8_t* block, int64_t index, float value) const {
    uint8_t* scales = block + panels_.code_bytes();
    if (panels_.half_scales)
      reinterpret_cast<Half*>(scales)[index] = to_half(value);
    else
      reinterpret_cast<float*>(scales)[index] = value;
  }

  void pack_row(const AffineWeight& weight, int64_t row) {
    const int64_t lane = row % kPanelRows, code_bytes = weight.columns * weight.bits / 8;
    const uint8_t* codes = weight.codes.data<uint8_t>() + row * code_bytes;
    for (int64_t g = 0; g < panels_.groups(); ++g) {
      auto* block = const_cast<uint8_t*>(block_of(row, g));
      const int64_t source = row * (weight.columns / weight.group) + g * panels_.group / weight.group;
      set_scale(block, lane, weight.scale.data<float>()[source]);
      set_scale(block, kPanelRows + lane, weight.offset.data<float>()[source]);
      for (int64_t k = 0; k < panels_.group; ++k) {
        const int64_t column = g * panels_.group + k;
        if (panels_.bits == 8)
          block[place(lane, k)] = codes[column];
        else
          block[place(lane, k)] |=
              static_cast<uint8_t>((codes[column / 2] >> (column % 2 * 4) & 15) << shift(k));
      }
    }
  }

  int64_t rows_;
  cpu::AffinePanels panels_{};
  memory::Buffer<uint8_t> data_;
};

}  // namespace

std::unique_ptr<Linear> make_linear(const Tensor& weight, bool allow_bf16) {
  require(weight.rank() == 2 && is_float(weight.dtype()), "make_linear: the weight is ", weight.describe(),
          ", expected a float matrix [N,K]");
  if (allow_bf16 && cpu::has_native_bfloat16()) return std::make_unique<BFloat16Linear>(weight);
  return std::make_unique<FloatLinear>(weight.to(DType::f32));
}

std::unique_ptr<Linear> make_linear(const AffineWeight& weight) {
  const int64_t n = weight.rows, k = weight.columns;
  require(n >= 0 && k >= 0, "make_linear: a weight of ", n, " x ", k);
  require(weight.bits == 4 || weight.bits == 8, "make_linear: codes of ", weight.bits,
          " bits, expected 4 or 8");
  require(weight.group >= 16 && weight.group % 16 == 0 && k % weight.group == 0, "make_linear: groups of ",
          weight.group, " for ", k, " columns, expected a multiple of 16 that divides them");
  const Shape codes{n, k * weight.bits / 8}, scales{n, k / weight.group};
  require(weight.codes.dtype() == DType::u8 && weight.codes.shape() == codes && weight.codes.is_contiguous(),
          "make_linear: codes are ", weight.codes.describe(), ", expected u8", codes.to_string());
  for (const Tensor* t : {&weight.scale, &weight.offset})
    require(t->dtype() == DType::f32 && t->shape() == scales && t->is_contiguous(),
            "make_linear: scale or offset is ", t->describe(), ", expected f32", scales.to_string());
  return std::make_unique<AffineLinear>(weight);
}

void gemm_nt(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  require(a.rank() == 2 && b.rank() == 2 && c.rank() == 2 && a.dim(1) == b.dim(1) && c.dim(0) == a.dim(0) &&
              c.dim(1) == b.dim(0),
          "gemm_nt: a ", a.describe(), ", b ", b.describe(), ", c ", c.describe(),
          ", expected [M,K], [N,K], [M,N]");
  require(c.dim(1) <= 1 || c.stride(1) == 1, "gemm_nt: the last axis of c must be contiguous");
  const int64_t rows = a.dim(0), columns = a.dim(1), panels = panels_of(b.dim(0));
  const Tensor x = columns <= 1 || a.stride(1) == 1 ? a : a.contiguous();
  const float* left = x.data<float>();
  const float* right = b.data<float>();
  // Panels packed at a time: what a core keeps close while all rows of a pass by.
  constexpr int64_t kRun = 4;
  cpu::parallel_rows(
      (panels + kRun - 1) / kRun, kRun * kPanelRows * (rows + 1) * columns,
      [&](int64_t begin, int64_t end, int) {
        thread_local memory::Buffer<float> packed;
        packed.reserve(kRun * kPanelRows * columns);
        for (int64_t first = begin * kRun; first < std::min(panels, end * kRun); first += kRun) {
          const int64_t count = std::min(kRun, panels - first);
          for (int64_t p = 0; p < count; ++p)
            cpu::pack_float_panel(right, b.stride(0), b.stride(1), b.dim(0), columns, first + p,
                                  packed.data() + p * kPanelRows * columns);
          cpu::Output out = output_of(c, 0, accumulate);
          out.data += first * kPanelRows;
          out.columns -= first * kPanelRows;
          cpu::multiply_float({packed.data(), columns}, 0, count, left, x.stride(0), rows, out);
        }
      });
}

}  // namespace fovea::kernels
