// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace fovea {

/// A published document whose mechanism Fovea implements or will implement.
struct Paper {
  int number;  ///< Fovea's own number, stable
  const char* title;
  int year;           ///< 0 when not known
  const char* arxiv;  ///< id such as "2407.08608", or empty
  const char* room;   ///< the folder its files live in
};

/// All papers, ascending by number.
std::span<const Paper> papers();
/// nullptr when there is no such number.
const Paper* find_paper(int number);

}  // namespace fovea
