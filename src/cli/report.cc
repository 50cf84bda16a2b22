// SPDX-License-Identifier: Apache-2.0
#include "cli/report.h"

#include "cli/report_template.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/target.h"

namespace fovea::cli {
namespace {

using nlohmann::ordered_json;

constexpr char kBase64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// Cells of 4 bits, two to a byte (the first in the low half), in base64.
std::string packed_cells(const std::vector<uint8_t>& cells) {
  std::vector<uint8_t> bytes((cells.size() + 1) / 2);
  for (size_t i = 0; i < cells.size(); ++i)
    bytes[i / 2] = static_cast<uint8_t>(bytes[i / 2] | (cells[i] << (4 * (i % 2))));
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) word = (word << 8) | (j < left ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; ++j) text += j <= left ? kBase64[(word >> (18 - 6 * j)) & 63u] : '=';
  }
  return text;
}

ordered_json row_json(const inference::RecipeMeasurement& row) {
  ordered_json answers = ordered_json::array();
  for (const auto& answer : row.answers)
    answers.push_back({{"depth", answer.depth},
                       {"question", answer.question},
                       {"expected", answer.expected},
                       {"answer", answer.answer},
                       {"correct", answer.correct}});
  return {{"recipe", row.recipe},
          {"length", row.length},
          {"prompt_tokens", row.prompt_tokens},
          {"decoded_tokens", row.decoded_tokens},
          {"first_token_seconds", row.first_token_seconds},
          {"prefill_tokens_per_second", row.prefill_tokens_per_second},
          {"decode_tokens_per_second", row.decode_tokens_per_second},
          {"kv_bytes", row.kv_bytes},
          {"read_bytes", row.read_bytes},
          {"density", row.density},
          {"recall", row.recall},
          {"kl", row.kl},
          {"agreement", row.agreement},
          {"perplexity", row.perplexity},
          {"facts_found", row.facts_found()},
          {"answers", answers}};
}

ordered_json maps_json(const inference::AttentionMaps& maps) {
  ordered_json plans = ordered_json::array();
  for (const auto& plan : maps.plans)
    plans.push_back({{"recipe", plan.recipe},
                     {"density", plan.density},
                     {"recall", plan.recall},
                     {"cells", packed_cells(plan.cells)}});
  return {{"length", maps.length},
          {"layers", maps.layers},
          {"heads", maps.heads},
          {"size", maps.size},
          {"attention", packed_cells(maps.attention)},
          {"plans", plans}};
}

}  // namespace

ordered_json comparison_json(const inference::Comparison& comparison, const ReportSetting& setting,
                             bool with_maps) {
  ordered_json rows = ordered_json::array();
  for (const auto& row : comparison.rows) rows.push_back(row_json(row));
  ordered_json result = {{"version", FOVEA_VERSION},
                         {"machine", {{"threads", threads()}, {"simd", kernels::active_simd_target()}}},
                         {"model",
                          {{"name", setting.model_name},
                           {"path", setting.model_path},
                           {"layers", setting.layers},
                           {"heads_q", setting.heads_q},
                           {"heads_kv", setting.heads_kv}}},
                         {"text", setting.text},
                         {"rows", rows}};
  if (with_maps) result["maps"] = maps_json(comparison.maps);
  return result;
}

std::string comparison_html(const inference::Comparison& comparison, const ReportSetting& setting) {
  static constexpr std::string_view kMark = "@FOVEA_DATA@";
  // Model output may hold any bytes; what is not UTF-8 is replaced. "</" would end the script element.
  std::string data =
      comparison_json(comparison, setting, true).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  for (size_t at = data.find("</"); at != std::string::npos; at = data.find("</", at + 3))
    data.replace(at, 2, "<\\/");
  std::string page(kReportTemplate);
  page.replace(page.find(kMark), kMark.size(), data);
  return page;
}

}  // namespace fovea::cli
