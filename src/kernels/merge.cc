// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/merge.h"
#include "fovea/kernels/attention.h"

namespace fovea::kernels {

AttentionResult merge(std::span<const AttentionResult> parts) {
  require(!parts.empty(), "merge: there are no parts");
  const Tensor& first = parts[0].o;
  require(first.rank() == 4 && is_float(first.dtype()),
          "merge: o of part 0 must be a float [B,Hq,Tq,Dv], got ", first);
  const Shape rows{first.dim(0), first.dim(1), first.dim(2)};
  cpu::MergeProblem problem{.parts = {},
                            .o = {},
                            .lse = nullptr,
                            .batch = rows[0],
                            .heads = rows[1],
                            .queries = rows[2],
                            .dim_v = first.dim(3)};
  std::vector<Tensor> held;  // contiguous lse of every part
  for (size_t n = 0; n < parts.size(); ++n) {
    const auto& [o, lse] = parts[n];
    require(o.defined() && o.shape() == first.shape() && o.dtype() == first.dtype(), "merge: o of part ", n,
            " is ", o, ", that of part 0 ", first);
    require(lse.defined() && lse.dtype() == DType::f32 && lse.shape() == rows, "merge: lse of part ", n,
            " must be f32", rows, ", got ", lse);
    held.push_back(lse.contiguous());
    problem.parts.push_back({view_of("merge", "o", o), held.back().data<float>()});
  }
  AttentionResult result{Tensor::empty(first.shape(), first.dtype()), Tensor::empty(rows)};
  problem.o = view_of("merge", "o", result.o);
  problem.lse = result.lse.data<float>();
  cpu::run_merge(problem);
  return result;
}

}  // namespace fovea::kernels
