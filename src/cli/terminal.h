// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fovea::cli {

bool stdout_is_terminal();
bool stderr_is_terminal();
/// Columns of the terminal on stdout; a generous width where there is none.
int terminal_width();

}  // namespace fovea::cli
