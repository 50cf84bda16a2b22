// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace fovea::cli {

/// Rows of text in aligned columns. The last column is cut at the terminal's width.
class Table {
 public:
  struct Column {
    std::string header;
    bool right = false;  ///< numbers
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  size_t rows() const { return rows_.size(); }
  std::string to_string(int width) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// "1.53 ms", "12.0 us", "3.2 s"
std::string print_seconds(double seconds);
/// "1.5 GB" (powers of 1000)
std::string print_quantity(double value, const std::string& unit);
/// Fixed number of decimals.
std::string print_fixed(double value, int decimals);
/// Joined by `separator`.
std::string join(const std::vector<std::string>& parts, const std::string& separator);

}  // namespace fovea::cli
