// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/model_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

namespace fs = std::filesystem;

class ModelFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "fovea_model_files_" + std::to_string(getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/a-folder");
    std::ofstream(folder_ + "/Tiny-Model.gguf") << "1234";
    std::ofstream(folder_ + "/a-folder/config.json") << "{}";
    std::ofstream(folder_ + "/notes.txt") << "not a model";
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string folder_;
};

TEST_F(ModelFiles, ListsGgufFilesAndFoldersByName) {
  const auto models = list_models(folder_);
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0].name, "Tiny-Model");
  EXPECT_EQ(models[0].bytes, 4);
  EXPECT_EQ(models[1].name, "a-folder");
  EXPECT_TRUE(list_models(folder_ + "/nothing").empty());
}

TEST_F(ModelFiles, FindsByPathThenByName) {
  EXPECT_EQ(find_model(folder_ + "/notes.txt", folder_), folder_ + "/notes.txt");
  EXPECT_EQ(find_model("tiny-model", folder_), folder_ + "/Tiny-Model.gguf");
  EXPECT_EQ(find_model("TINY-MODEL.GGUF", folder_), folder_ + "/Tiny-Model.gguf");
  EXPECT_EQ(find_model("a-folder", folder_), folder_ + "/a-folder");
}

TEST_F(ModelFiles, AnEmptyNameIsTheDefaultModel) {
  EXPECT_THROW(find_model("", folder_), Error);
  const std::string path = folder_ + "/" + std::string(kDefaultModel.file);
  std::ofstream(path) << "x";
  EXPECT_EQ(find_model("", folder_), path);
  EXPECT_EQ(find_model(std::string(kDefaultModel.name), folder_), path);
}

TEST_F(ModelFiles, WhatIsMissingIsNamedWithWhatThereIs) {
  try {
    find_model("other", folder_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::not_found);
    EXPECT_NE(std::string(error.what()).find("'other'"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("Tiny-Model"), std::string::npos);
  }
}

}  // namespace
}  // namespace fovea::model
