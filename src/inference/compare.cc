// SPDX-License-Identifier: Apache-2.0
#include "fovea/inference/compare.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>

#include "fovea/core/thread_pool.h"
#include "fovea/inference/planted_facts.h"
#include "fovea/model/recipe_build.h"
#include "fovea/model/session.h"
#include "fovea/sparse/plan.h"

namespace fovea::inference {
namespace {

using model::Recipe;
using model::Session;

constexpr int64_t kQuestionTokens = 48;  // room for one question and its answer at the end of the context
constexpr int64_t kAnswerTokens = 8;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// The next-token distributions at the decoded positions, as logits [n,V], and the tokens that the text has
// there.
struct Distributions {
  Tensor logits;
  std::vector<int32_t> targets;
};

int64_t best_of(const float* logits, int64_t count) {
  return std::max_element(logits, logits + count) - logits;
}

double log_sum_exp(const float* logits, int64_t count) {
  const double maximum = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(logits[i]) - maximum);
  return maximum + std::log(sum);
}

//   KL = sum p (log p - log q),  perplexity = exp(-mean log q[target])
void score(const Distributions& exact, const Distributions& found, RecipeMeasurement& row) {
  const int64_t positions = found.logits.dim(0), vocabulary = found.logits.dim(1);
  std::vector<double> kl(static_cast<size_t>(positions)), log_likelihood(kl.size()), agreed(kl.size());
  parallel_for(positions, [&](int64_t i, int) {
    const float* p = exact.logits.data<float>() + i * vocabulary;
    const float* q = found.logits.data<float>() + i * vocabulary;
    const double lse_p = log_sum_exp(p, vocabulary), lse_q = log_sum_exp(q, vocabulary);
    double divergence = 0;
    for (int64_t token = 0; token < vocabulary; ++token) {
      const double log_p = static_cast<double>(p[token]) - lse_p;
      divergence += std::exp(log_p) * (log_p - (static_cast<double>(q[token]) - lse_q));
    }
    const auto at = static_cast<size_t>(i);
    kl[at] = std::max(0.0, divergence);
    log_likelihood[at] = static_cast<double>(q[found.targets[at]]) - lse_q;
    agreed[at] = best_of(p, vocabulary) == best_of(q, vocabulary) ? 1.0 : 0.0;
  });
  auto mean = [&](const std::vector<double>& x) {
    return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(std::max<size_t>(x.size(), 1));
  };
  row.kl = mean(kl);
  row.agreement = mean(agreed);
  row.perplexity = std::exp(-mean(log_likelihood));
}

// Reads the prompt, then the rest of the text token by token.
Distributions run_text(Session& session, std::span<const int32_t> tokens, int64_t decoded,
                       RecipeMeasurement& row) {
  const auto total = static_cast<int64_t>(tokens.size()), prompt = total - decoded;
  Distributions found;
  found.targets.assign(tokens.end() - decoded, tokens.end());
  const Stopwatch prefill;
  const Tensor first = session.prefill(tokens.first(static_cast<size_t>(prompt)));
  row.first_token_seconds = prefill.seconds();
  row.prefill_tokens_per_second = static_cast<double>(prompt) / row.first_token_seconds;
  found.logits = Tensor::empty({decoded, first.dim(1)});
  found.logits.select(0, 0).copy_from(first.select(0, 0));
  double seconds = 0;
  for (int64_t i = 0; i < decoded; ++i) {
    const Stopwatch step;
    const Tensor logits = session.decode(tokens.subspan(static_cast<size_t>(prompt + i), 1));
    seconds += step.seconds();
    if (i + 1 < decoded) found.logits.select(0, i + 1).copy_from(logits.select(0, 0));
  }
  row.prompt_tokens = prompt;
  row.decoded_tokens = decoded;
  row.decode_tokens_per_second = static_cast<double>(decoded) / seconds;
  row.kv_bytes = session.kv_bytes();
  row.read_bytes = session.bytes_read();
  return found;
}

FactAnswer ask(const Session& session, const PlantedFact& fact, double depth) {
  const model::Tokenizer& tokenizer = session.model().tokenizer();
  Session fork = session.fork();
  Tensor logits = fork.decode(tokenizer.encode(fact.question, false, false));
  std::vector<int32_t> said;
  while (static_cast<int64_t>(said.size()) < kAnswerTokens) {
    const Tensor last = logits.select(0, logits.dim(0) - 1);
    said.push_back(static_cast<int32_t>(best_of(last.data<float>(), last.size())));
    if (said.back() == tokenizer.eos()) break;
    logits = fork.decode(std::span(&said.back(), 1));
  }
  FactAnswer answer{depth, fact.question, fact.answer, tokenizer.decode(said), false};
  const size_t word = answer.answer.find_first_not_of(" \n");
  answer.correct =
      word != std::string::npos && answer.answer.compare(word, fact.answer.size(), fact.answer) == 0;
  return answer;
}

// Plans, density, recall and pictures, all on the queries and keys of exact attention over the whole prompt.
class PlanStudy {
 public:
  PlanStudy(const std::vector<Recipe>& recipes, int64_t map_size) : map_size_(map_size) {
    for (const auto& recipe : recipes)
      if (auto planner = model::make_planner(recipe)) {
        planners_.push_back(std::move(planner));
        maps_.plans.push_back({recipe.to_string(), {}, {}, {}});
      }
  }

  bool needed() const { return map_size_ > 0 || !planners_.empty(); }

  void see(const model::PrefillView& view) {
    maps_.layers = view.layer + 1;
    maps_.heads = view.q.dim(1);
    maps_.length = view.k.dim(2);
    maps_.size = map_size_;
    if (map_size_ > 0) append_attention_cells(view.q, view.k, map_size_, maps_.attention);
    for (size_t n = 0; n < planners_.size(); ++n) {
      const kernels::KeyPlan plan = planners_[n]->plan(view.q, view.k);
      auto& record = maps_.plans[n];
      const auto density = sparse::plan_density(plan);
      const Tensor recall = sparse::plan_recall(view.q, view.k, plan);
      for (int64_t head = 0; head < maps_.heads; ++head) {
        record.density.push_back(density[static_cast<size_t>(head * plan.heads / maps_.heads)]);
        record.recall.push_back(static_cast<double>(recall.at<float>(0, head)));
      }
      if (map_size_ > 0) append_plan_cells(plan, maps_.heads, map_size_, record.cells);
    }
  }

  AttentionMaps take() { return std::move(maps_); }

 private:
  std::vector<std::shared_ptr<const sparse::Planner>> planners_;
  AttentionMaps maps_;
  int64_t map_size_;
};

double mean_of(const std::vector<double>& values) {
  return values.empty()
             ? 1.0
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Exact first, then the given recipes, each once.
std::vector<Recipe> with_exact_first(const std::vector<Recipe>& recipes) {
  std::vector<Recipe> all = {Recipe{}};
  for (const auto& recipe : recipes)
    if (std::find(all.begin(), all.end(), recipe) == all.end()) all.push_back(recipe);
  return all;
}

}  // namespace

int64_t RecipeMeasurement::facts_found() const {
  return std::count_if(answers.begin(), answers.end(), [](const auto& answer) { return answer.correct; });
}

Comparison compare(const std::shared_ptr<const model::Model>& model, const std::string& text,
                   const std::vector<Recipe>& given, const CompareOptions& options,
                   const CompareProgress& progress) {
  options::validate(options, "compare");
  require(!options.lengths.empty(), "compare: no length was given");
  const std::vector<Recipe> recipes = with_exact_first(given);
  for (int64_t length : options.lengths) {
    require(length <= model->config().context, "compare: length ", length, " exceeds the model's context of ",
            model->config().context, " tokens");
    require(length > options.decoded + kQuestionTokens, "compare: length ", length,
            " leaves no prompt beside ", options.decoded, " decoded tokens and ", kQuestionTokens,
            " for questions");
  }
  const int64_t longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  // Time goes roughly with the square of the length; the study of plans counts as one more recipe.
  auto weight = [](int64_t length) {
    return static_cast<double>(length) * static_cast<double>(length + 2048);
  };
  double all = 0, done = 0;
  for (int64_t length : options.lengths) all += weight(length) * static_cast<double>(recipes.size() + 1);
  auto begin = [&](const std::string& what, int64_t length) {
    if (progress) progress(what + " at " + std::to_string(length) + " tokens", done / all);
    done += weight(length);
  };

  Comparison comparison;
  for (int64_t length : options.lengths) {
    const PlantedText text_tokens = plant_facts(
        model->tokenizer(), text, options.facts > 0 ? length - kQuestionTokens : length, options.facts);
    const std::span<const int32_t> tokens(text_tokens.tokens);
    Distributions exact;
    for (const Recipe& recipe : recipes) {
      begin(recipe.to_string(), length);
      RecipeMeasurement row;
      row.recipe = recipe.to_string();
      row.length = length;
      Session session(model, recipe, {.context = length});
      Distributions found = run_text(session, tokens, options.decoded, row);
      if (&recipe == &recipes.front()) exact = found;
      score(exact, found, row);
      for (size_t fact = 0; fact < text_tokens.facts.size(); ++fact)
        row.answers.push_back(ask(session, text_tokens.facts[fact], text_tokens.depths[fact]));
      comparison.rows.push_back(std::move(row));
    }
    PlanStudy study(recipes, length == longest ? options.map_size : 0);
    begin("plans of exact attention's heads", length);
    if (!study.needed()) continue;
    Session observed(model, {}, {.context = length, .chunk = length});
    observed.observe([&](const model::PrefillView& view) { study.see(view); });
    observed.prefill(tokens.first(tokens.size() - static_cast<size_t>(options.decoded)));
    AttentionMaps maps = study.take();
    for (const auto& plan : maps.plans)
      for (auto& row : comparison.rows)
        if (row.length == length && row.recipe == plan.recipe) {
          row.density = mean_of(plan.density);
          row.recall = mean_of(plan.recall);
        }
    if (length == longest) comparison.maps = std::move(maps);
  }
  if (progress) progress("done", 1.0);
  return comparison;
}

}  // namespace fovea::inference
