// SPDX-License-Identifier: Apache-2.0
#include "cli/table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace fovea::cli {

std::string Table::to_string(int width) const {
  std::vector<size_t> widths;
  for (const auto& column : columns_) widths.push_back(column.header.size());
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  auto add_line = [&](auto cell_of) {
    std::string line;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string cell = cell_of(i);
      const std::string padding(widths[i] - cell.size(), ' ');
      line += (i > 0 ? "  " : "") + (columns_[i].right ? padding + cell : cell + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    if (line.size() > static_cast<size_t>(width))
      line = line.substr(0, static_cast<size_t>(width) - 3) + "...";
    text += line + "\n";
  };
  add_line([&](size_t i) { return columns_[i].header; });
  for (const auto& row : rows_) add_line([&](size_t i) { return i < row.size() ? row[i] : std::string(); });
  return text;
}

std::string print_fixed(double value, int decimals) {
  char buffer[64];
  std::snprintf(buffer, sizeof(buffer), "%.*f", decimals, value);
  return buffer;
}

std::string print_seconds(double seconds) {
  if (seconds < 1e-3) return print_fixed(seconds * 1e6, 1) + " us";
  if (seconds < 1) return print_fixed(seconds * 1e3, 2) + " ms";
  return print_fixed(seconds, 2) + " s";
}

std::string print_quantity(double value, const std::string& unit) {
  constexpr std::array<const char*, 6> kPrefixes = {"", "k", "M", "G", "T", "P"};
  size_t power = 0;
  while (std::abs(value) >= 1000 && power + 1 < kPrefixes.size()) {
    value /= 1000;
    ++power;
  }
  return print_fixed(value, power == 0 ? 0 : 2) + " " + kPrefixes[power] + unit;
}

std::string join(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) text += (i > 0 ? separator : "") + parts[i];
  return text;
}

}  // namespace fovea::cli
