// SPDX-License-Identifier: Apache-2.0
#include "cli/output_path.h"

#include <unistd.h>

#include <filesystem>

#include "fovea/core/error.h"

namespace fovea::cli {

namespace fs = std::filesystem;

void check_output_path(const std::string& path) {
  require(!path.empty(), "the output path is empty");
  std::error_code trouble;
  require(!fs::is_directory(path, trouble), "output '", path, "' is a directory");
  require(!fs::exists(path, trouble) || fs::is_regular_file(path, trouble), "output '", path,
          "' is not a regular file");
  if (fs::exists(path, trouble) && access(path.c_str(), W_OK) != 0)
    throw Error("output '" + path + "' is write-protected", ErrorCode::io);
  const fs::path parent = fs::path(path).parent_path();
  const fs::path folder = parent.empty() ? fs::path(".") : parent;
  require(fs::exists(folder, trouble), "output '", path, "': there is no folder '", folder.string(), "'");
  require(fs::is_directory(folder, trouble), "output '", path, "': '", folder.string(), "' is not a folder");
  if (access(folder.c_str(), W_OK | X_OK) != 0)
    throw Error("output '" + path + "': folder '" + folder.string() + "' is not writable", ErrorCode::io);
}

}  // namespace fovea::cli
