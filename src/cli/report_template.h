// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace fovea::cli {

/// report_template.html, put into the program by the build. "@FOVEA_DATA@" stands where the data goes.
extern const std::string_view kReportTemplate;

}  // namespace fovea::cli
