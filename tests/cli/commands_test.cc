// SPDX-License-Identifier: Apache-2.0
// What the commands print and write when all is well.
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <thread>

#include "cli/program.h"
#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/io/safetensors.h"
#include "tests/model/tiny_model.h"

namespace fovea::test {
namespace {

Tensors attention_inputs(int64_t tq, int64_t tk, int64_t d = 8) {
  return {{"q", random_normal({1, 4, tq, d}, 1)},
          {"k", random_normal({1, 2, tk, d}, 2)},
          {"v", random_normal({1, 2, tk, d}, 3)}};
}

void expect_same(const Tensor& got, const Tensor& want) {
  ASSERT_EQ(got.shape().to_string(), want.shape().to_string());
  ASSERT_EQ(got.dtype(), want.dtype());
  EXPECT_EQ(std::memcmp(got.raw(), want.raw(), static_cast<size_t>(got.bytes())), 0);
}

TEST(List, JsonHasOneObjectForEachOperatorOfTheCatalogue) {
  const auto rows = run_well({"list", "--json"}).json();
  ASSERT_EQ(rows.size(), catalogue().all().size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const Operator& op = *catalogue().all()[i];
    EXPECT_EQ(rows[i]["name"], op.name);
    EXPECT_EQ(rows[i]["room"], std::string(name_of(op.room)));
    EXPECT_EQ(rows[i]["paper"], op.paper);
    EXPECT_EQ(rows[i]["title"], find_paper(op.paper)->title);
    EXPECT_EQ(rows[i]["forms"].size(), op.forms.size());
    EXPECT_EQ(rows[i]["devices"].size(), op.devices.size());
  }
}

TEST(List, FiltersByRoomAndPaper) {
  for (const auto& row : run_well({"list", "--room", "sparse", "--json"}).json())
    EXPECT_EQ(row["room"], "sparse");
  const auto paper = run_well({"list", "--paper", "92", "--json"}).json();
  EXPECT_GE(paper.size(), 5u);
  for (const auto& row : paper) EXPECT_EQ(row["paper"], 92);
}

TEST(List, APaperWithoutOperatorsIsAnEmptyArrayAndNoError) {
  for (const auto& paper : papers()) {
    const auto& all = catalogue().all();
    if (std::any_of(all.begin(), all.end(), [&](const auto& op) { return op->paper == paper.number; }))
      continue;
    EXPECT_EQ(run_well({"list", "--paper", std::to_string(paper.number), "--json"}).json(),
              nlohmann::json::array());
    return;
  }
}

TEST(List, NamesAreOneALine) {
  const std::string out = run_well({"list", "--names"}).out;
  EXPECT_EQ(static_cast<size_t>(std::count(out.begin(), out.end(), '\n')), catalogue().all().size());
}

TEST(Show, JsonHasTypedDefaultsShapesAndOptionalInputs) {
  const auto op = run_well({"show", "flash-attention", "--json"}).json();
  EXPECT_EQ(op["inputs"][0]["name"], "q");
  EXPECT_EQ(op["inputs"][0]["shape"], "[B,Hq,Tq,D]");
  EXPECT_EQ(op["inputs"][0]["optional"], false);
  EXPECT_EQ(op["outputs"][0]["name"], "o");
  bool seen = false;
  for (const auto& option : op["options"]) {
    if (option["name"] != "window_left") continue;
    seen = true;
    EXPECT_EQ(option["type"], "int");
    EXPECT_EQ(option["default"], -1);
    EXPECT_EQ(option["range"], ">= -1");
    EXPECT_NE(option["help"], "");
  }
  EXPECT_TRUE(seen);
}

TEST(Show, EveryOperatorHasATextPageAndJson) {
  for (const auto& op : catalogue().all()) {
    EXPECT_TRUE(run_well({"show", op->name}).out.starts_with(op->name + ": "));
    EXPECT_EQ(run_well({"show", op->name, "--json"}).json()["name"], op->name);
  }
}

TEST(Run, WritesWhatTheOperatorComputes) {
  const TemporaryFolder folder;
  const Tensors inputs = attention_inputs(10, 12);
  io::write_safetensors(folder / "in", inputs);
  run_well({"run", "flash-attention", folder / "in", "-o", folder / "out", "--set", "causal=true"});
  const Tensors want = catalogue().at("flash-attention").run(inputs, {{"causal", "true"}});
  const auto got = io::read_safetensors(folder / "out");
  expect_same(got.tensors["o"], want["o"]);
  expect_same(got.tensors["lse"], want["lse"]);
  EXPECT_EQ(got.metadata.at("op"), "flash-attention");
}

TEST(Run, TakesInputsOfAWorkedCaseByTheirPlainNames) {
  const TemporaryFolder folder;
  const Tensors inputs = attention_inputs(10, 12);
  io::write_safetensors(
      folder / "case",
      {{"in.q", inputs["q"]}, {"in.k", inputs["k"]}, {"in.v", inputs["v"]}, {"out.o", Tensor::zeros({3})}});
  io::write_safetensors(folder / "plain", inputs);
  run_well({"run", "flash-attention", folder / "case", "-o", folder / "a"});
  run_well({"run", "flash-attention", folder / "plain", "-o", folder / "b"});
  EXPECT_EQ(read_file(folder / "a"), read_file(folder / "b"));
}

TEST(Run, ResultsAreBitwiseEqualForAnyNumberOfThreads) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(257, 300, 16));
  run_well({"run", "flash-attention", folder / "in", "-o", folder / "a", "--threads", "1"});
  run_well({"run", "flash-attention", folder / "in", "-o", folder / "b", "--threads", "3"});
  run_well({"run", "flash-attention", folder / "in", "-o", folder / "c"}, {{"FOVEA_THREADS", "2"}});
  EXPECT_EQ(read_file(folder / "a"), read_file(folder / "b"));
  EXPECT_EQ(read_file(folder / "a"), read_file(folder / "c"));
}

TEST(Run, StatsCountBytesOfInputsOutputsAndScratch) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(10, 12));
  const auto stats =
      run_well({"run", "flash-attention", folder / "in", "-o", folder / "out", "--stats", "--json"}).json();
  EXPECT_EQ(stats["operator"], "flash-attention");
  EXPECT_EQ(stats["input_bytes"], 4 * (4 * 10 * 8 + 2 * 2 * 12 * 8));
  EXPECT_EQ(stats["output_bytes"], 4 * (4 * 10 * 8 + 4 * 10));
  EXPECT_GT(stats["scratch_bytes"], 0);
  EXPECT_GT(stats["seconds"], 0.0);
  EXPECT_EQ(stats["outputs"][0]["shape"], nlohmann::json({1, 4, 10, 8}));
  const std::string text =
      run_well({"run", "flash-attention", folder / "in", "-o", folder / "out", "--stats"}).out;
  EXPECT_NE(text.find("scratch_bytes"), std::string::npos);
}

TEST(Run, SaysNothingWithoutStats) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(3, 4));
  const Outcome outcome = run_well({"run", "flash-attention", folder / "in", "-o", folder / "out"});
  EXPECT_EQ(outcome.out + outcome.err, "");
}

TEST(Run, EmptyTensorsAreNoError) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(0, 12));
  run_well({"run", "flash-attention", folder / "in", "-o", folder / "out"});
  EXPECT_EQ(io::read_safetensors(folder / "out").tensors["o"].shape(), (Shape{1, 4, 0, 8}));
}

TEST(Run, AFullDiskIsAFailureAndLeavesNothing) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(200, 12));
  const auto before = folder.listing();
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  rlimit small = old;
  small.rlim_cur = 4096;
  setrlimit(RLIMIT_FSIZE, &small);
  const Outcome outcome = run_fovea({"run", "flash-attention", folder / "in", "-o", folder / "out"});
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(outcome.err.starts_with("fovea: error: ")) << outcome.err;
  EXPECT_EQ(folder.listing(), before);
}

TEST(Run, AFullStdoutIsAFailure) {
  const std::string command = std::string(FOVEA_PROGRAM) + " list --json > /dev/full 2> /dev/null";
  const int state = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(state), 1);
}

TEST(Run, AnInterruptLeavesNoTemporaryFile) {
  const TemporaryFolder folder;
  io::write_safetensors(folder / "in", attention_inputs(3000, 3000, 64));
  const auto before = folder.listing();
  const std::string out = folder / "out", in = folder / "in";
  for (int delay : {5, 20, 60, 150}) {
    const pid_t child = fork();
    if (child == 0) {
      execl(FOVEA_PROGRAM, "fovea", "run", "flash-attention", in.c_str(), "-o", out.c_str(), nullptr);
      _exit(127);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(delay));
    kill(child, SIGINT);
    int state = 0;
    waitpid(child, &state, 0);
    // Either it was stopped before the file, or the file is whole.
    EXPECT_TRUE(!fs::exists(out) || io::read_safetensors(out).tensors.contains("o"));
    fs::remove(out);
    EXPECT_EQ(folder.listing(), before);
  }
}

TEST(Bench, KernelsStandBesideTheirCeilings) {
  const auto rows = run_well({"bench", "--kernels", "windows", "threads", "--repeat", "1", "--json"}).json();
  ASSERT_GT(rows.size(), 2u);
  for (const auto& row : rows) {
    EXPECT_GT(row["seconds"], 0.0) << row;
    EXPECT_GT(row["fraction"], 0.0) << row;
    EXPECT_TRUE(row["limit"] == "compute" || row["limit"] == "memory");
    EXPECT_EQ(row["beside"].is_null(), row["time_share"].is_null());
  }
  EXPECT_EQ(rows.back()["kernel"], "threads");
  EXPECT_EQ(rows.back()["work_share"], 1.0);
}

TEST(Bench, CeilingsAloneAreARow) {
  const auto rows = run_well({"bench", "--roofline", "--threads", "1", "--json"}).json();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_GT(rows[0]["f32_flops"], 0.0);
}

TEST(Bench, RowsHaveTheFieldsOfTheirContract) {
  const auto rows = run_well({"bench", "flash-attention", "quest", "--length", "256,300", "--queries", "1",
                              "--heads", "4/2", "--dim", "32", "--causal", "--threads", "1", "--set",
                              "page_size=8", "--set", "token_budget=64", "--json"})
                        .json();
  ASSERT_EQ(rows.size(), 4u);
  for (const auto& row : rows) {
    for (const char* key :
         {"operator", "device", "dtype",    "batch",          "heads_q", "heads_kv",      "length_q",
          "length_k", "dim",    "causal",   "threads",        "options", "seconds",       "flops",
          "bytes",    "limit",  "fraction", "ratio_to_exact", "density", "scratch_bytes", "error"})
      EXPECT_TRUE(row.contains(key)) << key;
    EXPECT_EQ(row["heads_q"], 4);
    EXPECT_EQ(row["heads_kv"], 2);
    EXPECT_EQ(row["length_q"], 1);
    EXPECT_EQ(row["causal"], true);
    EXPECT_EQ(row["threads"], 1);
    EXPECT_GT(row["seconds"], 0.0);
    EXPECT_GT(row["ratio_to_exact"], 0.0);
    EXPECT_TRUE(row["limit"] == "compute" || row["limit"] == "memory");
  }
  EXPECT_EQ(rows[0]["operator"], "flash-attention");
  EXPECT_EQ(rows[0]["error"], 0.0);
  EXPECT_EQ(rows[0]["density"], 1.0);
  EXPECT_EQ(rows[0]["flops"], 4.0 * 4 * 256 * 32);
  EXPECT_EQ(rows[1]["density"], 64.0 / 256);
  EXPECT_EQ(rows[1]["options"]["page_size"], 8);
  EXPECT_GT(rows[1]["error"], 0.0);
  EXPECT_EQ(rows[2]["length_k"], 300);
}

TEST(Bench, EveryOperatorOfTheCatalogueCanBeMeasured) {
  for (const auto& op : catalogue().all()) {
    const Outcome outcome = run_fovea(
        {"bench", op->name, "--length", "256", "--heads", "4/4", "--dim", "32", "--repeat", "1", "--json"});
    EXPECT_EQ(outcome.status, 0) << op->name << ": " << outcome.err;
    if (outcome.status != 0) continue;
    EXPECT_EQ(outcome.json()[0]["operator"], op->name);
  }
}

TEST(Generate, TheSameSeedWritesTheSameTextStreamedAndAsJson) {
  const TemporaryFolder folder;
  model::tiny::write_folder(model::tiny::make({}), folder.path(), true);
  const std::vector<std::string> arguments = {"generate", "-m",    folder.path(),   "-p", "attention", "-n",
                                              "12",       "--raw", "--temperature", "1",  "--seed",    "5"};
  auto with_json = arguments, with_stats = arguments;
  with_json.push_back("--json");
  with_stats.push_back("--stats");
  const auto json = run_well(with_json).json();
  EXPECT_EQ(json["prompt_tokens"], 9);
  EXPECT_EQ(json["recipe"], "exact");
  EXPECT_LE(json["tokens"].size(), 12u);
  EXPECT_EQ(run_well(with_json).json()["tokens"], json["tokens"]);
  const Outcome streamed = run_well(with_stats);
  EXPECT_TRUE(streamed.err.find("tokens/s") != std::string::npos);
  // Random bytes are rarely UTF-8; JSON replaces what is not.
  EXPECT_FALSE(streamed.out.empty());
}

TEST(Generate, ARecipeIsPrintedBackCanonically) {
  const TemporaryFolder folder;
  model::tiny::write_folder(model::tiny::make({}), folder.path(), true);
  const auto json = run_well({"generate", "-m", folder.path(), "-p", "attention", "-n", "3", "--recipe",
                              " quest : page_size=4 ", "--json"})
                        .json();
  EXPECT_EQ(json["recipe"], "cache=quest:page_size=4");
}

// On a model of random weights quality means nothing, but what equals exact attention must measure as equal.
TEST(Compare, MeasuresEveryRecipeBesideExactAttentionAndWritesAReport) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "tiny");
  model::tiny::write_folder(model::tiny::make({}), folder / "tiny", true);
  std::string text;
  for (int i = 0; i < 60; ++i) text += "the mill turns with the tide number " + std::to_string(i) + ". ";
  write_file(folder / "text.txt", text);
  const auto json =
      run_well({"compare", "-m", folder / "tiny", "--text", folder / "text.txt", "--length", "600",
                "--recipe", "cache=f32", "--recipe", "cache=quest:budget=64,page_size=16,dense_layers=0",
                "--html", folder / "report.html", "--json"})
          .json();
  const auto& rows = json.contains("rows") ? json["rows"] : json;
  ASSERT_EQ(rows.size(), 3u) << json.dump().substr(0, 400);
  EXPECT_EQ(rows[0]["recipe"], "exact");
  EXPECT_EQ(rows[1]["recipe"], "cache=f32");
  EXPECT_LT(rows[1]["kl"], 1e-4);
  EXPECT_EQ(rows[1]["agreement"], 1.0);
  EXPECT_GT(rows[2]["kl"], rows[1]["kl"]);
  EXPECT_LT(rows[2]["read_bytes"], rows[0]["read_bytes"]);
  const std::string report = read_file(folder / "report.html");
  EXPECT_NE(report.find("cache=quest"), std::string::npos);
  EXPECT_EQ(report.find("http"), std::string::npos);  // nothing is fetched
}

TEST(Info, ListsTheTargetThatIsForced) {
  const auto info = run_well({"info", "--json"}).json();
  EXPECT_EQ(info["simd"]["available"][0], info["simd"]["active"]);
  EXPECT_EQ(info["devices"][0], "cpu");
  EXPECT_GE(info["threads"], 1);
  const std::string last = info["simd"]["available"].back();
  EXPECT_EQ(run_well({"info", "--json", "--simd", last}).json()["simd"]["active"], last);
  EXPECT_EQ(run_well({"--simd", last, "info", "--json"}).json()["simd"]["active"], last);
  EXPECT_EQ(run_well({"info", "--json"}, {{"FOVEA_SIMD", last}}).json()["simd"]["active"], last);
}

TEST(Models, LooksInTheCacheFolder) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "fovea/models");
  write_file(folder / "fovea/models/tiny.gguf", "GGUF");
  const auto models = run_well({"models", "--json"}, {{"XDG_CACHE_HOME", folder.path()}}).json();
  ASSERT_EQ(models["models"].size(), 1u);
  EXPECT_EQ(models["models"][0]["name"], "tiny");
  EXPECT_EQ(models["models"][0]["bytes"], 4);
  EXPECT_NE(models["fetch"].get<std::string>().find("./run model"), std::string::npos);
}

TEST(Completion, EveryShellKnowsEveryCommand) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = run_well({"completion", shell}).out;
    for (const char* command : {"list", "show", "run", "bench", "generate", "info", "models"})
      EXPECT_NE(script.find(command), std::string::npos) << shell << " " << command;
    EXPECT_NE(script.find("fovea list --names"), std::string::npos);
  }
}

TEST(Completion, TheBashScriptCompletesCommandsAndFlags) {
  const std::string script = std::string("source <(") + FOVEA_PROGRAM +
                             " completion bash); COMP_WORDS=(fovea run --st); COMP_CWORD=2; _fovea; echo "
                             "${COMPREPLY[@]} > ";
  const TemporaryFolder folder;
  ASSERT_EQ(std::system(("bash -c '" + script + (folder / "reply") + "'").c_str()), 0);
  EXPECT_EQ(read_file(folder / "reply"), "--stats\n");
}

TEST(Help, EveryCommandHasHelpAndTheProgramAVersion) {
  const std::string help = run_well({"--help"}).out;
  for (const char* command :
       {"list", "show", "run", "bench", "generate", "info", "models", "completion", "docs"}) {
    EXPECT_NE(help.find(command), std::string::npos);
    EXPECT_NE(run_well({command, "--help"}).out.find("Usage: fovea " + std::string(command)),
              std::string::npos);
  }
  EXPECT_TRUE(run_well({"--version"}).out.starts_with("fovea "));
}

}  // namespace
}  // namespace fovea::test
