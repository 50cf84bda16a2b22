// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/recipe.h"

#include <gtest/gtest.h>

#include <random>

#include "fovea/core/error.h"
#include "fovea/model/head_policies.h"
#include "fovea/model/recipe_build.h"
#include "fovea/sparse/planner.h"

namespace fovea::model {
namespace {

struct Good {
  const char *line, *canonical;
};

TEST(Recipe, GoodLinesPrintCanonically) {
  const Good lines[] = {
      {"exact", "exact"},
      {"  exact ", "exact"},
      {"minference", "prefill=minference"},
      {"quest", "cache=quest"},
      {"rotatekv", "cache=rotatekv"},
      {"duo", "heads=duo"},
      {"prefill=minference:vertical=1000; cache=quest:budget=1024+rotatekv:bits=2; heads=duo:sparsity=0.5",
       "prefill=minference:vertical=1000; cache=quest+rotatekv; heads=duo"},
      {"prefill=minference:vertical=500; cache=quest:budget=512+rotatekv:bits=4; heads=duo:sparsity=0.25",
       "prefill=minference:vertical=500; cache=quest:token_budget=512+rotatekv:bits=4; "
       "heads=duo:sparsity=0.25"},
      {"heads=duo;cache=quest;prefill=minference", "prefill=minference; cache=quest; heads=duo"},
      {"cache=f32+quest+streaming:recent=8", "cache=quest+streaming:recent=8+f32"},
      {" cache = quest : page = 32 , budget = +64 ", "cache=quest:page_size=32,token_budget=64"},
      {"quest:keep_last=0,page=8,min_pages=4", "cache=quest:page_size=8,min_pages=4,keep_last=false"},
      {"duo:sparsity=2.5e-1", "heads=duo:sparsity=0.25"},
      {"duo:gates=/models/gates-50%.npy", "heads=duo:gates=/models/gates-50%.npy"},
      {"duo:gates=\"a b;c\\\"d\\\\.npy\"", "heads=duo:gates=\"a b;c\\\"d\\\\.npy\""},
      {"duo:gates=a+1,2.npy", "heads=duo:gates=a+1,2.npy"},
      {"a-shape:n_init=0\n;\tquest", "prefill=a-shape:n_init=0; cache=quest"},
      {"cache=rotatekv:clip_ratio=1", "cache=rotatekv"},
  };
  for (const auto& [line, canonical] : lines) {
    const Recipe recipe = Recipe::parse(line);
    EXPECT_EQ(recipe.to_string(), canonical) << line;
    EXPECT_EQ(Recipe::parse(recipe.to_string()), recipe) << line;
    EXPECT_EQ(Recipe::from_json(recipe.to_json()), recipe) << recipe.to_json();
  }
}

struct Bad {
  const char* line;
  int character;
  const char* says;
};

TEST(Recipe, BadLinesPointAtTheCharacter) {
  const Bad lines[] = {
      {"", 1, "expected a mechanism or a slot"},
      {"   ", 4, "expected a mechanism or a slot"},
      {"minferense", 1, "did you mean 'minference'?"},
      {"quest; xyzzyxyzzy", 8, "nothing is called 'xyzzyxyzzy'; there are: exact, "},
      {"prefil=minference", 1, "did you mean 'prefill'?"},
      {"prefill=minferense", 9, "did you mean 'minference'?"},
      {"prefill=quest", 9, "is a cache policy, not a prefill planner: write cache=quest"},
      {"cache=duo", 7, "is a head policy, not a cache policy: write heads=duo"},
      {"heads=minference", 7, "is a prefill planner"},
      {"prefill=", 9, "expected the name of a mechanism, got the end"},
      {"quest;", 7, "expected a mechanism or a slot"},
      {"quest;;duo", 7, "got ';'"},
      {"quest:budget", 13, "expected '=' and a value after option 'budget', got the end"},
      {"quest:budget=", 14, "expected a value"},
      {"quest:budget=,page=2", 14, "expected a value, got ','"},
      {"quest:budget=12,", 17, "expected an option"},
      {"quest:", 7, "expected an option"},
      {"quest:bugdet=12", 7, "did you mean 'budget'?"},
      {"cache=f16:bits=2", 11, "'f16' has no options"},
      {"quest:budget=abc", 14, "expects an integer, got 'abc'"},
      {"quest:budget=1,2", 14, "expects an integer, got '1,2'"},
      {"quest:budget=0", 14, "outside its range >= 1"},
      {"quest:budget=99999999999999999999", 14, "expects an integer"},
      {"quest:page=8, page_size=8", 15, "option page_size is given twice"},
      {"quest:keep_last=maybe", 17, "expects true or false"},
      {"rotatekv:bits=5", 15, "not one of 2, 3, 4, 8"},
      {"minference:vertical=-1", 21, "outside its range >= 0"},
      {"duo:sparsity=1.5", 14, "outside its range [0, 1]"},
      {"duo:sparsity=nan", 14, "expects a number"},
      {"duo; heads=duo", 6, "heads is given twice"},
      {"quest; rotatekv", 8, "cache is given twice; join cache policies with '+'"},
      {"cache=quest+quest", 13, "of the same kind (selection)"},
      {"cache=f16+rotatekv", 11, "of the same kind (storage)"},
      {"quest+rotatekv", 6, "write cache=quest+..."},
      {"prefill=minference+minference", 20, "takes one term"},
      {"quest; exact", 8, "'exact' stands alone"},
      {"exact:budget=2", 7, "'exact' has no options"},
      {"quest(minference)", 7, "'quest' does not work around another mechanism"},
      {"minference(a-shape)", 12, "does not work around"},
      {"prefill=minference(", 20, "expected the name of a mechanism, got the end"},
      {"prefill=minference(duo", 23, "expected ')', got the end"},
      {"quest budget=2", 7, "expected ';' or the end, got 'b'"},
      {"duo:gates=\"x", 11, "this quote is not closed"},
      {"duo:gates=\"x\\n\"", 14, "expected '\"' or '\\' after '\\'"},
      {"quest:budget=12\xc3\xa9", 14, "expects an integer"},
      {"\xc3\xa9", 1, "got '\xc3\xa9'"},
      {"quest; \xc3\xa9", 8, "got '\xc3\xa9'"},
      {"duo:gates=\xc3\xa9; x", 14, "nothing is called 'x'"},
      {"a(a(a(a(a(a(a(a(a(a(a", 18, "nested more than 8 deep"},
  };
  for (const auto& [line, character, says] : lines) {
    try {
      Recipe::parse(line);
      ADD_FAILURE() << "accepted: " << line;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind("recipe: character " + std::to_string(character) + ": ", 0), 0u) << line << "\n"
                                                                                               << message;
      EXPECT_NE(message.find(says), std::string::npos) << line << "\n" << message;
      const std::string caret = "\n  " + std::string(static_cast<size_t>(character) - 1, ' ') + "^";
      EXPECT_NE(message.find(caret), std::string::npos) << message;
      EXPECT_NE(message.find("\n  " + std::string(line) + "\n"), std::string::npos) << message;
    }
  }
}

TEST(Recipe, TheCaretStandsInTheLineOfTheError) {
  try {
    Recipe::parse("quest;\n\tduo:sparsity=2");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "recipe: character 22: duo: option sparsity = 2 is outside its range [0, 1]\n"
                 "  \tduo:sparsity=2\n"
                 "  \t             ^");
  }
}

TEST(Recipe, JsonHasTypedValues) {
  EXPECT_EQ(
      Recipe::parse("minference:vertical=5; cache=quest:keep_last=false+int8; duo:sparsity=0.25,gates=x")
          .to_json(),
      R"({"prefill":{"name":"minference","options":{"vertical":5}},)"
      R"("cache":[{"name":"quest","options":{"keep_last":false}},{"name":"int8"}],)"
      R"("heads":{"name":"duo","options":{"sparsity":0.25,"gates":"x"}}})");
  EXPECT_EQ(Recipe{}.to_json(), "{}");
  EXPECT_EQ(Recipe::from_json("{}"), Recipe{});
  EXPECT_EQ(Recipe::from_json(R"({"cache": {"name": "quest", "options": {"budget": "64"}}})").to_string(),
            "cache=quest:token_budget=64");
}

TEST(Recipe, BadJsonIsRefusedWithItsPath) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "this is not JSON"},
      {"[]", "expected a JSON object"},
      {R"({"": {"name": "duo"}})", "a slot needs a name"},
      {R"({"cash": {"name": "quest"}})", "cash: no slot is called 'cash'"},
      {R"({"cache": [{"name": "quest"}, {"name": "qest"}]})", "cache[1]: no cache policy is called 'qest'"},
      {R"({"cache": {"name": 3}})", "cache.name: expected a string"},
      {R"({"cache": {}})", "cache: a term needs a name"},
      {R"({"cache": {"name": "quest", "budget": 3}})", "cache.budget: unknown key"},
      {R"({"cache": {"name": "quest", "options": {"budget": 0.5}}})", "cache.options.budget: quest: option"},
      {R"({"cache": {"name": "quest", "options": {"budget": {}}}})",
       "cache.options.budget: expected a value"},
      {R"({"cache": {"name": "quest", "options": {"budget": [true]}}})", "expected a list of numbers"},
      {R"({"prefill": {"name": "minference", "inner": {"name": "minference"}}})", "prefill.inner: "},
  };
  for (const auto& [json, says] : cases) {
    try {
      Recipe::from_json(json);
      ADD_FAILURE() << "accepted: " << json;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << json << "\n" << error.what();
    }
  }
}

// A value of the described field that is often not its default.
std::string random_value(const options::Info& field, std::mt19937& random) {
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  if (field.type == "bool") return pick(2) ? "true" : "false";
  if (field.limits.choices[0] != '\0') {
    std::vector<std::string> choices(1);
    for (const char* c = field.limits.choices; *c != '\0'; ++c)
      *c == ',' ? choices.emplace_back() : choices.back() += *c, void();
    return choices[static_cast<size_t>(pick(static_cast<int>(choices.size())))];
  }
  if (field.type == "str") {
    std::string text;
    for (int i = pick(12); i >= 0; --i) text += "ab1 ,;+()\"\\=:.-\n\t%"[pick(18)];
    return text;
  }
  const double low = std::max(field.limits.low, -1e3), high = std::min(field.limits.high, low + 1e6);
  const auto number = [&] {
    const double x = low + (high - low) * (1 + pick(1000)) / 1000.0;
    return field.type.find("int") != std::string::npos ? options::print(static_cast<int64_t>(x))
                                                       : options::print(x);
  };
  if (field.type.rfind("list", 0) != 0) return number();
  std::string list = number();
  for (int i = pick(4); i > 0; --i) list += "," + number();
  return list;
}

options::Pairs random_options(const std::vector<options::Info>& fields, std::mt19937& random) {
  options::Pairs result;
  for (const auto& field : fields) {
    const std::string value = options::canonical(field, random_value(field, random), field.name);
    if (random() % 2 && value != field.default_value) result.emplace_back(field.name, value);
  }
  return result;
}

RecipeTerm random_planner(std::mt19937& random, int depth) {
  const auto& all = sparse::planners();
  const sparse::PlannerEntry* entry = nullptr;
  do entry = &all[random() % all.size()];
  while (entry->wraps && depth == 3);
  RecipeTerm term{entry->name, random_options(entry->options, random), {}};
  if (entry->wraps) term.inner.push_back(random_planner(random, depth + 1));
  return term;
}

TEST(Recipe, PrintingAndParsingIsIdentityOverAllMechanisms) {
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    Recipe recipe;
    if (random() % 2) recipe.prefill.push_back(random_planner(random, 0));
    for (auto kind :
         {cache::PolicyKind::selection, cache::PolicyKind::retention, cache::PolicyKind::storage}) {
      std::vector<const cache::PolicyEntry*> of_kind;
      for (const auto& entry : cache::policies())
        if (entry.kind == kind && cache::find_policy(entry.name) == &entry) of_kind.push_back(&entry);
      const auto* entry = of_kind[random() % of_kind.size()];
      if (random() % 2) recipe.cache.push_back({entry->name, random_options(entry->options, random), {}});
    }
    if (random() % 2) {
      const auto& entry = head_policies()[random() % head_policies().size()];
      recipe.heads.push_back({entry.name, random_options(entry.options, random), {}});
    }
    const std::string line = recipe.to_string();
    ASSERT_EQ(Recipe::parse(line), recipe) << line;
    ASSERT_EQ(Recipe::from_json(recipe.to_json()), recipe) << recipe.to_json();
  }
}

TEST(Recipe, DamagedLinesGiveErrorsOnly) {
  std::mt19937 random(11);
  const std::string line =
      "prefill=minference:vertical=500; cache=quest:budget=512+rotatekv:bits=4; heads=duo:gates=\"a\\\\b\"";
  const std::string alphabet = "aq=:;+,()\"\\ 1.\n-";
  for (int round = 0; round < 5000; ++round) {
    std::string damaged = line;
    for (unsigned i = 0; i < 1 + round % 4u; ++i) {
      const size_t at = random() % damaged.size();
      if (random() % 2)
        damaged[at] = alphabet[random() % alphabet.size()];
      else
        damaged.erase(at, 1 + random() % 5);
    }
    try {
      const Recipe recipe = Recipe::parse(damaged);
      EXPECT_EQ(Recipe::parse(recipe.to_string()), recipe) << damaged;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind("recipe: character ", 0), 0u) << error.what();
    }
  }
}

TEST(RecipeBuild, CacheTermsGoToTheirKinds) {
  const auto spec = cache_spec(Recipe::parse("cache=quest:budget=64+rotatekv:bits=4+streaming"));
  EXPECT_EQ(spec.selection, (cache::PolicySpec{"quest", {{"token_budget", "64"}}}));
  EXPECT_EQ(spec.storage, (cache::PolicySpec{"rotatekv", {{"bits", "4"}}}));
  EXPECT_EQ(spec.retention, (cache::PolicySpec{"streaming", {}}));
  EXPECT_EQ(cache_spec({}).storage, cache::PolicySpec{});
}

TEST(RecipeBuild, DuoBringsItsRetention) {
  const Recipe recipe = Recipe::parse("cache=int8; heads=duo:recent=128");
  const auto spec = cache_spec(recipe);
  EXPECT_EQ(spec.retention, (cache::PolicySpec{"streaming", {{"sink", "64"}, {"recent", "128"}}}));
  EXPECT_TRUE(spec.streaming.empty());
  EXPECT_EQ(duo_heads(recipe)->recent, 128);
  EXPECT_EQ(duo_heads(Recipe{}), nullptr);
  EXPECT_THROW(cache_spec(Recipe::parse("cache=streaming; heads=duo")), Error);
}

TEST(RecipeBuild, EveryPlannerIsMadeFromItsDefaults) {
  EXPECT_EQ(make_planner(Recipe{}), nullptr);
  for (const auto& entry : sparse::planners()) {
    const std::string line = "prefill=" + entry.name + (entry.wraps ? "(minference)" : "");
    EXPECT_NE(make_planner(Recipe::parse(line)), nullptr) << line;
  }
}

}  // namespace
}  // namespace fovea::model
