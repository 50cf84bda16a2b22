// SPDX-License-Identifier: Apache-2.0
// Bad input of every kind, given to the real program. Each row: exit status 2, exactly one line on stderr
// that begins `fovea: error:`, the culprit's name in it, nothing on stdout, and not a file more or less than
// before.
#include <gtest/gtest.h>

#include <cmath>

#include "cli/program.h"
#include "fovea/core/rng.h"
#include "fovea/io/safetensors.h"
#include "tests/model/tiny_model.h"

namespace fovea::test {
namespace {

struct Refusal {
  const char* name;
  const char* arguments;  // split at spaces; @x is the file x of the test's folder, '' is an empty argument
  const char* culprit;    // must appear in the message
  Variables variables = {};
  int lines = 1;  // a recipe's error shows the recipe and a caret below it
};

Tensor normal(const Shape& shape) { return random_normal(shape, 7); }

std::string little_endian(uint64_t value) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

// A safetensors file with this header, as it stands, and `data` zero bytes.
std::string raw_file(const std::string& header, size_t data) {
  return little_endian(header.size()) + header + std::string(data, '\0');
}

class Refusals : public testing::TestWithParam<Refusal> {
 protected:
  void SetUp() override {
    const Tensor q = normal({1, 4, 10, 8}), k = normal({1, 2, 12, 8}), v = normal({1, 2, 12, 8});
    const auto write = [&](const char* name, const Tensors& tensors) {
      io::write_safetensors(folder_ / name, tensors);
    };
    write("good", {{"q", q}, {"k", k}, {"v", v}});
    write("no_v", {{"q", q}, {"k", k}});
    write("no_q", {{"k", k}, {"v", v}});
    write("nothing", {});
    write("extra", {{"q", q}, {"k", k}, {"v", v}, {"surplus", q}});
    write("rank3", {{"q", normal({4, 10, 8})}, {"k", k}, {"v", v}});
    write("other_d", {{"q", q}, {"k", normal({1, 2, 12, 6})}, {"v", v}});
    write("other_b", {{"q", q}, {"k", normal({2, 2, 12, 8})}, {"v", v}});
    write("other_t", {{"q", q}, {"k", k}, {"v", normal({1, 2, 11, 8})}});
    write("other_h", {{"q", q}, {"k", k}, {"v", normal({1, 4, 12, 8})}});
    write("heads3", {{"q", normal({1, 3, 10, 8})}, {"k", k}, {"v", v}});
    write("no_d", {{"q", Tensor::zeros({1, 4, 10, 0})}, {"k", Tensor::zeros({1, 2, 12, 0})}, {"v", v}});
    write("int_q", {{"q", Tensor::zeros({1, 4, 10, 8}, DType::i32)}, {"k", k}, {"v", v}});
    write("mixed", {{"q", q}, {"k", k.to(DType::bf16)}, {"v", v}});
    write("f16_quest", {{"q", q.to(DType::f16)}, {"k", k}, {"v", v}});
    write("k_len2", {{"q", q}, {"k", k}, {"v", v}, {"k_len", Tensor::zeros({2}, DType::i32)}});
    write("k_len_f", {{"q", q}, {"k", k}, {"v", v}, {"k_len", Tensor::zeros({1})}});
    write("sink3", {{"q", q}, {"k", k}, {"v", v}, {"sink", Tensor::zeros({3})}});
    write("mask_f", {{"q", q}, {"k", k}, {"v", v}, {"mask", Tensor::zeros({1, 4, 10, 12})}});
    write("bias_s", {{"q", q}, {"k", k}, {"v", v}, {"bias", Tensor::zeros({1, 4, 10, 11})}});
    write("blocks2", {{"q", q}, {"k", k}, {"v", v}, {"blocks", Tensor::zeros({1, 4, 7, 7}, DType::u8)}});
    write("d12", {{"x", normal({1, 2, 12})}, {"signs", Tensor::full({12}, 1)}});
    write("signs8", {{"x", normal({1, 2, 16})}, {"signs", Tensor::full({8}, 1)}});

    const std::string good = read_file(folder_ / "good");
    write_file(folder_ / "empty", "");
    write_file(folder_ / "short", good.substr(0, 5));
    write_file(folder_ / "cut_header", good.substr(0, 40));
    write_file(folder_ / "cut_data", good.substr(0, good.size() - 100));
    write_file(folder_ / "text", "This is a letter, not a file of tensors.\nSo it should be refused.\n");
    write_file(folder_ / "huge_header", little_endian(uint64_t{1} << 62) + "{}");
    write_file(folder_ / "not_json", raw_file("{\"q\": [1, 2", 16));
    write_file(folder_ / "odd_type",
               raw_file(R"({"q":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", 8));
    write_file(folder_ / "negative",
               raw_file(R"({"q":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8));
    write_file(folder_ / "lying", raw_file(R"({"q":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}})", 8));
    write_file(folder_ / "beyond", raw_file(R"({"q":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", 8));
    write_file(folder_ / "overflow",
               raw_file(R"({"q":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8));
    fs::create_directory(folder_ / "folder");
    write_file(folder_ / "broken.json", "[1, 2");
    write_models();
  }

  void write_models() {
    using namespace model::tiny;
    const TinyModel tiny = make({});
    fs::create_directory(folder_ / "tiny");
    write_folder(tiny, folder_ / "tiny", true);
    fs::create_directory(folder_ / "alien");
    write_folder(tiny, folder_ / "alien", true);
    write_file(folder_ / "alien/config.json",
               R"({"model_type":"rwkv","hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4})");
    fs::create_directory(folder_ / "no_weights");
    write_file(folder_ / "no_weights/config.json", config_json(tiny));
    write_gguf(tiny, folder_ / "whole.gguf");
    const std::string whole = read_file(folder_ / "whole.gguf");
    write_file(folder_ / "cut.gguf", whole.substr(0, whole.size() / 2));
    write_file(folder_ / "cut_head.gguf", whole.substr(0, 7));
    std::string alien = whole;
    for (size_t at; (at = alien.find("llama")) != std::string::npos;) alien.replace(at, 5, "rwkvx");
    write_file(folder_ / "alien.gguf", alien);
  }

  std::vector<std::string> arguments(const std::string& text) const {
    std::istringstream words(text);
    std::vector<std::string> result;
    for (std::string word; words >> word;) {
      if (word == "''") word.clear();
      result.push_back(word.starts_with("@") ? folder_ / word.substr(1) : word);
    }
    return result;
  }

  TemporaryFolder folder_;
};

TEST_P(Refusals, OneLineThatNamesTheCulpritAndNothingLeftBehind) {
  const Refusal& refusal = GetParam();
  const auto before = folder_.listing();
  Variables variables = refusal.variables;
  variables.emplace_back("XDG_CACHE_HOME", folder_ / "folder");
  const Outcome outcome = run_fovea(arguments(refusal.arguments), variables);
  EXPECT_EQ(outcome.status, 2);
  EXPECT_TRUE(outcome.err.starts_with("fovea: error: ")) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), refusal.lines) << outcome.err;
  EXPECT_EQ(outcome.err.find("fovea: error:", 1), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find(refusal.culprit), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(folder_.listing(), before);
}

const Refusal kArguments[] = {
    {"NoCommand", "", "subcommand"},
    {"UnknownCommand", "frobnicate", "frobnicate"},
    {"MisspeltCommand", "benhc", "bench"},
    {"UnknownFlag", "list --frobnicate", "--frobnicate"},
    {"ListUnknownRoom", "list --room cellar", "cellar"},
    {"ListPaperZero", "list --paper 0", "paper 0"},
    {"ListPaperBeyond", "list --paper 120", "paper 120"},
    {"ListPaperNoNumber", "list --paper abc", "--paper"},
    {"ListSurplus", "list quest", "quest"},
    {"ShowNothing", "show", "OPERATOR"},
    {"ShowUnknown", "show no-such-thing", "no-such-thing"},
    {"ShowMisspelt", "show flash-atention", "did you mean 'flash-attention'"},
    {"UnknownSimdTarget", "info --simd MMX", "MMX"},
    {"UnknownSimdVariable", "info", "MMX", {{"FOVEA_SIMD", "MMX"}}},
    {"InfoThreadsZero", "info --threads 0", "--threads"},
    {"ThreadsVariable", "info", "FOVEA_THREADS", {{"FOVEA_THREADS", "lots"}}},
    {"CompletionUnknownShell", "completion tcsh", "tcsh"},
    {"DocsMissingFolder", "docs --output @missing", "missing"},
    {"DocsBrokenFigures", "docs --output @folder --figures @broken.json", "broken.json"},
};

const Refusal kRun[] = {
    {"NoOperator", "run", "OPERATOR"},
    {"UnknownOperator", "run no-such-thing @good -o @out", "no-such-thing"},
    {"NoOutput", "run flash-attention @good", "--output"},
    {"OutputIsAFolder", "run flash-attention @good -o @folder", "folder"},
    {"OutputInMissingFolder", "run flash-attention @good -o @missing/out", "missing"},
    {"OutputUnderAFile", "run flash-attention @good -o @good/out", "good"},
    {"OutputEmpty", "run flash-attention @good -o ''", "output"},
    {"OutputIsADevice", "run flash-attention @good -o /dev/null", "/dev/null"},
    {"MissingFile", "run flash-attention @missing -o @out", "missing"},
    {"NoFileButInputs", "run flash-attention -o @out", "'q'"},
    {"SurplusArgument", "run flash-attention @good @good -o @out", "good"},
    {"Cuda", "run flash-attention @good -o @out --device cuda", "cuda"},
    {"CudaIndex", "run flash-attention @good -o @out --device cuda:1", "cuda:1"},
    {"UnknownDevice", "run flash-attention @good -o @out --device tpu", "tpu"},
    {"ThreadsNegative", "run flash-attention @good -o @out --threads -1", "--threads"},
    {"ThreadsZero", "run flash-attention @good -o @out --threads 0", "--threads"},
    {"ThreadsTooMany", "run flash-attention @good -o @out --threads 9999", "--threads"},
    {"ThreadsNoNumber", "run flash-attention @good -o @out --threads two", "--threads"},
    {"SetWithoutValue", "run flash-attention @good -o @out --set causal", "causal"},
    {"SetWithoutKey", "run flash-attention @good -o @out --set =1", "=1"},
    {"SetUnknown", "run flash-attention @good -o @out --set window=3", "window"},
    {"SetNoBoolean", "run flash-attention @good -o @out --set causal=maybe", "causal"},
    {"SetEmptyValue", "run flash-attention @good -o @out --set causal=", "causal"},
    {"SetNoInteger", "run flash-attention @good -o @out --set window_left=1.5", "window_left"},
    {"SetBeyondInteger", "run flash-attention @good -o @out --set window_left=99999999999999999999",
     "window_left"},
    {"SetNoNumber", "run flash-attention @good -o @out --set scale=fast", "scale"},
    {"SetNan", "run flash-attention @good -o @out --set scale=nan", "scale"},
    {"SetBelowRange", "run flash-attention @good -o @out --set softcap=-1", "softcap"},
    {"SetWindowBelowRange", "run flash-attention @good -o @out --set window_left=-2", "window_left"},
    {"SetSplitsBelowRange", "run flash-attention @good -o @out --set num_splits=-1", "num_splits"},
    {"QuestPageSizeZero", "run quest @good -o @out --set page_size=0", "page_size"},
    {"QuestBudgetZero", "run quest @good -o @out --set token_budget=0", "token_budget"},
    {"MinferencePattern", "run minference @good -o @out --set pattern=plaid", "plaid"},
    {"MinferenceVertical", "run minference @good -o @out --set vertical=-1", "vertical"},
    {"MinferenceBlock", "run minference @good -o @out --set block=0", "block"},
    {"DuoRecentZero", "run duo-attention @good -o @out --set recent=0", "recent"},
    {"ChunkZero", "run memory-efficient-attention @good -o @out --set query_chunk=0", "query_chunk"},
};

const Refusal kTensors[] = {
    {"MissingV", "run flash-attention @no_v -o @out", "'v'"},
    {"MissingQ", "run flash-attention @no_q -o @out", "'q'"},
    {"NoTensors", "run flash-attention @nothing -o @out", "'q'"},
    {"SurplusTensor", "run flash-attention @extra -o @out", "surplus"},
    {"WrongRank", "run flash-attention @rank3 -o @out", "q has shape [4,10,8]"},
    {"WrongD", "run flash-attention @other_d -o @out", "k has shape [1,2,12,6]"},
    {"WrongBatch", "run flash-attention @other_b -o @out", "k has shape [2,2,12,8]"},
    {"WrongLength", "run flash-attention @other_t -o @out", "v has shape [1,2,11,8]"},
    {"WrongValueHeads", "run flash-attention @other_h -o @out", "v has shape [1,4,12,8]"},
    {"HeadsNoMultiple", "run flash-attention @heads3 -o @out", "Hq = 3"},
    {"EmptyHeadDimension", "run flash-attention @no_d -o @out", "q has shape [1,4,10,0]"},
    {"IntegerQuery", "run flash-attention @int_q -o @out", "q is i32"},
    {"MixedTypes", "run flash-attention @mixed -o @out", "k is bf16"},
    {"LengthsShape", "run flash-attention @k_len2 -o @out", "k_len"},
    {"LengthsType", "run flash-attention @k_len_f -o @out", "k_len is f32"},
    {"SinkShape", "run flash-attention @sink3 -o @out", "sink has shape [3]"},
    {"MaskType", "run memory-efficient-attention @mask_f -o @out", "mask is f32"},
    {"BiasShape", "run memory-efficient-attention @bias_s -o @out", "bias has shape"},
    {"PlanWithoutPlan", "run plan-attention @good -o @out", "mask"},
    {"PlanBlocksShape", "run plan-attention @blocks2 -o @out", "blocks"},
    {"RotateNoPowerOfTwo", "run hadamard-rotate @d12 -o @out", "D = 12"},
    {"RotateSignsShape", "run hadamard-rotate @signs8 -o @out", "signs"},
    {"DuoWithoutHeads", "run duo-attention @good -o @out", "retrieval"},
};

const Refusal kFiles[] = {
    {"EmptyFile", "run flash-attention @empty -o @out", "empty"},
    {"FewBytes", "run flash-attention @short -o @out", "short"},
    {"CutHeader", "run flash-attention @cut_header -o @out", "cut_header"},
    {"CutData", "run flash-attention @cut_data -o @out", "cut_data"},
    {"TextFile", "run flash-attention @text -o @out", "text"},
    {"Folder", "run flash-attention @folder -o @out", "folder"},
    {"Device", "run flash-attention /dev/zero -o @out", "/dev/zero"},
    {"HugeHeader", "run flash-attention @huge_header -o @out", "huge_header"},
    {"HeaderNoJson", "run flash-attention @not_json -o @out", "not_json"},
    {"UnknownType", "run flash-attention @odd_type -o @out", "odd_type"},
    {"NegativeShape", "run flash-attention @negative -o @out", "negative"},
    {"LyingShape", "run flash-attention @lying -o @out", "lying"},
    {"OffsetsBeyondTheEnd", "run flash-attention @beyond -o @out", "beyond"},
    {"ShapeOverflows", "run flash-attention @overflow -o @out", "overflow"},
};

const Refusal kBench[] = {
    {"NoOperator", "bench", "name an operator"},
    {"UnknownKernels", "bench --kernels nothing", "'nothing' is none of forward"},
    {"UnknownOperator", "bench no-such-thing", "no-such-thing"},
    {"LengthZero", "bench flash-attention --length 0", "--length"},
    {"LengthNegative", "bench flash-attention --length -5", "--length"},
    {"LengthUnit", "bench flash-attention --length 8q", "8q"},
    {"LengthGap", "bench flash-attention --length 1k,,2k", "--length"},
    {"LengthEmpty", "bench flash-attention --length ''", "--length"},
    {"LengthHuge", "bench flash-attention --length 99999999999k", "--length"},
    {"QueriesZero", "bench flash-attention --queries 0", "--queries"},
    {"BatchZero", "bench flash-attention --batch 0", "--batch"},
    {"HeadsZero", "bench flash-attention --heads 8/0", "--heads"},
    {"HeadsText", "bench flash-attention --heads many", "many"},
    {"HeadsNoMultiple", "bench flash-attention --heads 3/2", "Hq = 3"},
    {"DimZero", "bench flash-attention --dim 0", "--dim"},
    {"DimNoPowerOfTwo", "bench hadamard-rotate --dim 12", "D = 12"},
    {"DtypeInteger", "bench flash-attention --dtype i32", "i32"},
    {"DtypeUnknown", "bench flash-attention --dtype f64", "f64"},
    {"RepeatZero", "bench flash-attention --repeat 0", "--repeat"},
    {"CausalBothWays", "bench flash-attention --causal --no-causal", "--no-causal"},
    {"SetUnknown", "bench flash-attention quest --set nobody=1", "nobody"},
    {"SetOutOfRange", "bench quest --set page_size=0", "page_size"},
    {"Cuda", "bench flash-attention --device cuda", "cuda"},
};

const Refusal kGenerate[] = {
    {"NoPrompt", "generate", "prompt"},
    {"PromptFileMissing", "generate --file @missing", "missing"},
    {"ModelMissing", "generate -m @missing -p hello", "missing"},
    {"NoDefaultModel", "generate -p hello", "model"},
    {"ModelIsText", "generate -m @text -p hello", "text"},
    {"ModelIsEmpty", "generate -m @empty -p hello", "empty"},
    {"ModelIsAnEmptyFolder", "generate -m @folder -p hello", "folder"},
    {"ModelCut", "generate -m @cut.gguf -p hello", "cut.gguf"},
    {"ModelCutInItsHeader", "generate -m @cut_head.gguf -p hello", "cut_head.gguf"},
    {"ModelOfUnknownArchitecture", "generate -m @alien.gguf -p hello", "rwkvx"},
    {"FolderOfUnknownArchitecture", "generate -m @alien -p hello", "rwkv"},
    {"FolderWithoutWeights", "generate -m @no_weights -p hello", "no_weights"},
    {"PromptLongerThanTheContext", "generate -m @tiny -p hello --context 4", "context of 4"},
    {"PromptFileLongerThanTheModel", "generate -m @tiny --file @whole.gguf", "context of 2048"},
    {"ChatWithoutTemplate", "generate -m @tiny -p hello --chat", "--chat"},
    {"ContextZero", "generate -m @tiny -p hello --context 0", "--context"},
    {"RecipeUnknown", "generate -p hello --recipe plaid", "plaid", {}, 3},
    {"RecipeUnknownOption", "generate -p hello --recipe quest:pages=3", "pages", {}, 3},
    {"RecipeOutOfRange", "generate -p hello --recipe quest:page_size=0", "page_size", {}, 3},
    {"RecipeNoNumber", "generate -p hello --recipe quest:page_size=big", "page_size", {}, 3},
    {"RecipeUnknownSlot", "generate -p hello --recipe decode=quest", "decode", {}, 3},
    {"RecipeWrongSlot", "generate -p hello --recipe prefill=quest", "quest", {}, 3},
    {"RecipeSlotTwice", "generate -p hello --recipe prefill=minference;prefill=a-shape", "prefill", {}, 3},
    {"RecipeOpenBracket", "generate -p hello --recipe minference(a-shape", "character", {}, 3},
    {"RecipeEmptyOption", "generate -p hello --recipe quest:", "character 7", {}, 3},
    {"RecipeOfTwoSelections", "generate -p hello --recipe cache=quest+quest", "quest", {}, 3},
    {"TokensZero", "generate -p hello -n 0", "--tokens"},
    {"TokensText", "generate -p hello -n some", "--tokens"},
    {"TemperatureNegative", "generate -p hello --temperature -1", "temperature"},
    {"TopPZero", "generate -p hello --top-p 0", "top_p"},
    {"TopKText", "generate -p hello --top-k few", "top_k"},
    {"RawAndChat", "generate -p hello --raw --chat", "--raw"},
};

const Refusal kCompare[] = {
    {"NoText", "compare -m @tiny", "--text"},
    {"TextMissing", "compare -m @tiny --text @missing", "missing"},
    {"ModelMissing", "compare -m @missing --text @text", "missing"},
    {"LengthZero", "compare -m @tiny --text @text --length 0", "--length"},
    {"RecipeUnknown", "compare -m @tiny --text @text --recipe plaid", "plaid", {}, 3},
    {"ReportInMissingFolder", "compare -m @tiny --text @text --html @missing/report.html", "missing"},
};

std::string name_of_row(const testing::TestParamInfo<Refusal>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Arguments, Refusals, testing::ValuesIn(kArguments), name_of_row);
INSTANTIATE_TEST_SUITE_P(Run, Refusals, testing::ValuesIn(kRun), name_of_row);
INSTANTIATE_TEST_SUITE_P(Tensors, Refusals, testing::ValuesIn(kTensors), name_of_row);
INSTANTIATE_TEST_SUITE_P(Files, Refusals, testing::ValuesIn(kFiles), name_of_row);
INSTANTIATE_TEST_SUITE_P(Bench, Refusals, testing::ValuesIn(kBench), name_of_row);
INSTANTIATE_TEST_SUITE_P(Compare, Refusals, testing::ValuesIn(kCompare), name_of_row);
INSTANTIATE_TEST_SUITE_P(Generate, Refusals, testing::ValuesIn(kGenerate), name_of_row);

}  // namespace
}  // namespace fovea::test
