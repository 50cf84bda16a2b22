// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/recipe.h"

#include <algorithm>
#include <utility>

#include "fovea/core/error.h"
#include "fovea/model/recipe_terms.h"

namespace fovea::model {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool in_name(char c) { return begins_name(c) || is_digit(c) || c == '-'; }
bool begins_number(char c) { return is_digit(c) || c == '-' || c == '.'; }

// Can text[i] stand in a value without quotes? A '+' or ',' before a number can (1e+5, 1,2,3): neither names
// nor keys begin with one.
bool in_plain_value(std::string_view text, size_t i) {
  const char c = text[i];
  if (c == '+' || c == ',') return i + 1 < text.size() && begins_number(text[i + 1]);
  return !is_space(c) && static_cast<unsigned char>(c) >= 0x20 &&
         std::string_view(";()\"").find(c) == std::string_view::npos;
}

// Characters, not bytes: the continuation bytes of UTF-8 do not count.
size_t characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }));
}

// "recipe: character 9: what", the line, and a caret under the character.
[[noreturn]] void fail_at(std::string_view text, size_t place, const std::string& what) {
  const size_t line_break = text.substr(0, place).rfind('\n');
  const size_t begin = line_break == std::string_view::npos ? 0 : line_break + 1;
  const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
  std::string caret;
  for (char c : text.substr(begin, place - begin))
    if (c == '\t')
      caret += c;
    else
      caret.append(characters(std::string_view(&c, 1)), ' ');
  throw Error("recipe: character " + std::to_string(characters(text.substr(0, place)) + 1) + ": " + what +
              "\n  " + std::string(line) + "\n  " + caret + "^");
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::vector<WrittenPart> parts() {
    std::vector<WrittenPart> result;
    do result.push_back(part());
    while (accept(';'));
    if (at_ < text_.size())
      fail(result.back().slot.empty() && peek() == '+'
               ? "'+' joins cache policies: write cache=" + result.back().terms[0].name + "+..."
               : "expected ';' or the end, got " + here());
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { fail_at(text_, at_, what); }

  void skip_spaces() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  char peek() {
    skip_spaces();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  std::string here() const {
    if (at_ == text_.size()) return "the end";
    size_t end = at_ + 1;
    while (end < text_.size() && (static_cast<unsigned char>(text_[end]) & 0xc0u) == 0x80u) ++end;
    return "'" + std::string(text_.substr(at_, end - at_)) + "'";
  }

  std::string name(const std::string& what) {
    if (!begins_name(peek())) fail("expected " + what + ", got " + here());
    const size_t begin = at_;
    while (at_ < text_.size() && in_name(text_[at_])) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  WrittenPart part() {
    WrittenPart result;
    skip_spaces();
    result.place = at_;
    std::string first = name("a mechanism or a slot (prefill=, cache=, heads=)");
    if (accept('=')) {
      result.slot = std::move(first);
      result.terms.push_back(term(0));
      while (accept('+')) result.terms.push_back(term(0));
    } else {
      at_ = result.place;
      result.terms.push_back(term(0));
    }
    return result;
  }

  WrittenTerm term(int depth) {
    WrittenTerm result;
    skip_spaces();
    result.place = at_;
    result.name = name("the name of a mechanism");
    if (peek() == '(') {
      if (depth == kMaxNesting)
        fail("mechanisms are nested more than " + std::to_string(kMaxNesting) + " deep");
      ++at_;
      result.inner.push_back(term(depth + 1));
      if (!accept(')')) fail("expected ')', got " + here());
    }
    if (accept(':')) {
      do result.options.push_back(option());
      while (accept(','));
    }
    return result;
  }

  WrittenTerm::Option option() {
    WrittenTerm::Option result;
    skip_spaces();
    result.key_place = at_;
    result.key = name("an option");
    if (!accept('=')) fail("expected '=' and a value after option '" + result.key + "', got " + here());
    skip_spaces();
    result.value_place = at_;
    result.value = peek() == '"' ? quoted() : plain();
    return result;
  }

  std::string plain() {
    const size_t begin = at_;
    while (at_ < text_.size() && in_plain_value(text_, at_)) ++at_;
    if (at_ == begin) fail("expected a value, got " + here());
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::string quoted() {
    const size_t open = at_++;
    std::string value;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') {
        if (++at_ == text_.size()) break;
        if (text_[at_] != '"' && text_[at_] != '\\') fail("expected '\"' or '\\' after '\\', got " + here());
      }
      value += text_[at_++];
    }
    if (at_ == text_.size()) {
      at_ = open;
      fail("this quote is not closed");
    }
    ++at_;
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
};

std::string print_value(const std::string& value) {
  bool plain = !value.empty();
  for (size_t i = 0; i < value.size(); ++i) plain = plain && in_plain_value(value, i);
  if (plain) return value;
  std::string result = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

std::string print(const RecipeTerm& term) {
  std::string result = term.name;
  if (!term.inner.empty()) result += "(" + print(term.inner[0]) + ")";
  for (size_t i = 0; i < term.options.size(); ++i)
    result += (i == 0 ? ":" : ",") + term.options[i].first + "=" + print_value(term.options[i].second);
  return result;
}

}  // namespace

Recipe Recipe::parse(std::string_view text) {
  return resolve_terms(Parser(text).parts(),
                       [&](size_t place, const std::string& what) { fail_at(text, place, what); });
}

std::string Recipe::to_string() const {
  std::string result;
  const auto add = [&](const char* slot, const std::vector<RecipeTerm>& terms) {
    for (size_t i = 0; i < terms.size(); ++i)
      result += (i > 0 ? "+" : (result.empty() ? "" : "; ") + std::string(slot) + "=") + print(terms[i]);
  };
  add("prefill", prefill);
  add("cache", cache);
  add("heads", heads);
  return result.empty() ? "exact" : result;
}

}  // namespace fovea::model
