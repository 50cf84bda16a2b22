// SPDX-License-Identifier: Apache-2.0
// Exact attention beside Quest, which reads a quarter of the keys: how far apart are they?
#include <fovea/fovea.h>
#include <cmath>
#include <cstdio>

int main() {
  using namespace fovea;
  const Tensor q = random_normal({1, 8, 1, 64}, 1), k = random_normal({1, 2, 4096, 64}, 2),
               v = random_normal({1, 2, 4096, 64}, 3);

  const auto exact = kernels::flash_forward(q, k, v);
  const auto quest = cache::quest(q, k, v, {.token_budget = 1024});
  // The same by name, as the command line and other languages do it:
  const Tensors named =
      catalogue().at("quest").run({{"q", q}, {"k", k}, {"v", v}}, {{"token_budget", "1024"}});

  double kept = 0;
  for (int64_t h = 0; h < 8; ++h)
    kept += std::exp(quest.lse.at<float>(0, h, 0) - exact.lse.at<float>(0, h, 0)) / 8;
  std::printf("Quest keeps %.0f %% of the attention with 25 %% of the keys; lse %.4f by name\n", 100 * kept,
              static_cast<double>(named["lse"].at<float>(0, 0, 0)));
}
