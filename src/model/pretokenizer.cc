// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "fovea/core/error.h"

namespace fovea::model {

const char* const kGpt2Expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Llama 3 and Qwen 2 differ in how many digits make a word. The contractions are spelt in both cases because
// a caseless match would also take U+017F for an s.
std::string with_contractions(const char* digits) {
  return R"('[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|)" +
         std::string(digits) + R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
}

constexpr std::string_view kSmollm[] = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"};
constexpr std::string_view kGpt2[] = {"gpt-2", "gpt2", "phi-2",    "mpt",
                                      "olmo",  "jais", "gigachat", "roberta-bpe"};
constexpr std::string_view kLlama3[] = {"llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3"};
constexpr std::string_view kQwen2[] = {"qwen2", "deepseek-r1-qwen", "stablelm2"};

template <size_t N>
bool one_of(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Unicode's white space. PCRE2's \s has U+180E besides.
constexpr std::string_view kSpaces =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// \s and \S spelt out. \S within a class has no such spelling and stays.
std::string spell_spaces(std::string_view expression) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '\\' && i + 1 < expression.size()) {
      const char next = expression[++i];
      if (next == 's')
        out += in_class ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
      else if (next == 'S' && !in_class)
        out += "[^" + std::string(kSpaces) + "]";
      else
        out += {c, next};
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

// Letters and digits of Unicode 15 and 15.1, which vocabularies know and PCRE2 10.42 does not, each with a
// character of its class and its length in UTF-8 that PCRE2 has always known.
struct Newcomers {
  std::string_view first, last, stand_in;
};
constexpr std::string_view kLetter = "\U00010330", kHan = "\U00020000", kDigit = "\U0001d7ce";
constexpr Newcomers kNewcomers[] = {
    {"\U0001123f", "\U00011240", kLetter}, {"\U00011f02", "\U00011f02", kLetter},
    {"\U00011f04", "\U00011f10", kLetter}, {"\U00011f12", "\U00011f33", kLetter},
    {"\U00011f50", "\U00011f59", kDigit},  {"\U0001342f", "\U0001342f", kLetter},
    {"\U00013441", "\U00013446", kLetter}, {"\U0001b132", "\U0001b132", kLetter},
    {"\U0001b155", "\U0001b155", kLetter}, {"\U0001d2c0", "\U0001d2d3", kDigit},
    {"\U0001df25", "\U0001df2a", kLetter}, {"\U0001e030", "\U0001e06d", kLetter},
    {"\U0001e4d0", "\U0001e4eb", kLetter}, {"\U0001e4f0", "\U0001e4f9", kDigit},
    {"\U0002b739", "\U0002b739", kHan},    {"\U0002ebf0", "\U0002ee5d", kHan},
    {"\U00031350", "\U000323af", kHan}};

// The text with characters PCRE2 would misjudge replaced by others of the same length: newcomers, and
// surrogates (for which PCRE2 defines no result) by a private-use character.
std::string as_pcre2_should_see(std::string_view text) {
  std::string out(text);
  for (size_t i = 0; i < out.size(); ++i) {
    const auto byte = static_cast<unsigned char>(out[i]);
    if (byte == 0xed && static_cast<unsigned char>(out[i + 1]) >= 0xa0) out.replace(i, 3, "\xee\x80\x80");
    if (byte < 0xf0) continue;
    // UTF-8 sorts as its code points do.
    const std::string_view point = text.substr(i, 4);
    const auto* after =
        std::lower_bound(std::begin(kNewcomers), std::end(kNewcomers), point,
                         [](const Newcomers& range, std::string_view p) { return range.last < p; });
    if (after != std::end(kNewcomers) && after->first <= point) out.replace(i, 4, after->stand_in);
  }
  return out;
}

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* p) const { Free(p); }
};
using MatchContext =
    std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context, pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data, pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack, pcre2_jit_stack_free>>;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  const int length = pcre2_get_error_message(code, buffer, sizeof buffer);
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(std::max(length, 0))};
}

}  // namespace

struct Pretokenizer::Compiled {
  explicit Compiled(const Stage& from) : stage(from) {
    const std::string expression = spell_spaces(stage.expression);
    int error = 0;
    PCRE2_SIZE where = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &where, nullptr);
    require(code != nullptr, "the pre-tokenizer's expression does not compile: ", message_of(error),
            " at byte ", where);
    // Where the processor or the system has no JIT, matching is interpreted.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  ~Compiled() { pcre2_code_free(code); }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  Stage stage;
  pcre2_code* code = nullptr;
};

Pretokenizer::Pretokenizer(const std::vector<Stage>& stages) {
  for (const Stage& stage : stages) stages_.push_back(std::make_shared<const Compiled>(stage));
}

Pretokenizer Pretokenizer::named(std::string_view name) {
  if (one_of(kSmollm, name)) return Pretokenizer({{R"(\p{N})"}, {kGpt2Expression}});
  if (one_of(kGpt2, name)) return Pretokenizer({{kGpt2Expression}});
  if (one_of(kLlama3, name)) return Pretokenizer({{with_contractions(R"(\p{N}{1,3})")}});
  if (one_of(kQwen2, name)) return Pretokenizer({{with_contractions(R"(\p{N})")}});
  if (name == "default")
    return Pretokenizer({{R"([\p{P}\$\+<=>\^~\|]+)"}, {kGpt2Expression}, {R"(\p{N}+)"}, {"[0-9][0-9][0-9]"}});
  throw Error("the pre-tokenizer '" + std::string(name) + "' is not supported", ErrorCode::unsupported);
}

std::vector<std::string_view> Pretokenizer::split(std::string_view text) const {
  constexpr uint32_t kMatchLimit = 10'000'000, kHeapLimitKilobytes = 1 << 18;
  constexpr size_t kStackStart = 32 << 10, kStackLimit = 8 << 20;
  const std::string subject = as_pcre2_should_see(text);
  const MatchContext context(pcre2_match_context_create(nullptr));
  const JitStack stack(pcre2_jit_stack_create(kStackStart, kStackLimit, nullptr));
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKilobytes);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  std::vector<std::string_view> pieces, cut;
  if (!text.empty()) pieces.push_back(text);
  for (const auto& compiled : stages_) {
    const MatchData match(pcre2_match_data_create_from_pattern(compiled->code, nullptr));
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(match.get());
    cut.clear();
    for (const std::string_view piece : pieces) {
      const auto* start = reinterpret_cast<PCRE2_SPTR>(subject.data() + (piece.data() - text.data()));
      const auto keep = [&](bool wanted, size_t from, size_t to) {
        if (wanted && from < to) cut.push_back(piece.substr(from, to - from));
      };
      size_t at = 0;
      while (at < piece.size()) {
        const int result = pcre2_match(compiled->code, start, piece.size(), at,
                                       PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), context.get());
        if (result == PCRE2_ERROR_NOMATCH) break;
        require(result >= 0, "the pre-tokenizer cannot split the text: ", message_of(result));
        require(found[0] >= at && found[0] < found[1],
                "the pre-tokenizer's expression moves a match's start");
        keep(compiled->stage.keep_gaps, at, found[0]);
        keep(compiled->stage.keep_matches, found[0], found[1]);
        at = found[1];
      }
      keep(compiled->stage.keep_gaps, at, piece.size());
    }
    pieces.swap(cut);
  }
  return pieces;
}

}  // namespace fovea::model
