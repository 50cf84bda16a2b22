// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>

#include "fovea/core/error.h"
#include "io/message_of.h"
#include "io/scratch.h"

namespace fovea::io {
namespace {

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

ErrorCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::internal;
}

TEST(MapFile, ShowsTheBytesOfAFile) {
  const Scratch scratch;
  put(scratch / "a", "hello");
  const MappedFile file = map_file(scratch / "a");
  EXPECT_EQ(file.bytes.size(), 5u);
  EXPECT_EQ(read_text(scratch / "a"), "hello");
}

TEST(MapFile, TakesAnEmptyFile) {
  const Scratch scratch;
  put(scratch / "a", "");
  EXPECT_TRUE(map_file(scratch / "a").bytes.empty());
  EXPECT_EQ(read_text(scratch / "a"), "");
}

TEST(MapFile, SaysWhyAFileCannotBeRead) {
  const Scratch scratch;
  EXPECT_EQ(code_of([&] { map_file(scratch / "absent"); }), ErrorCode::not_found);
  EXPECT_EQ(code_of([&] { map_file(scratch / "."); }), ErrorCode::io);
  EXPECT_NE(message_of([&] { map_file(scratch / "."); }).find("directory"), std::string::npos);
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  EXPECT_NE(message_of([&] { map_file(scratch / "pipe"); }).find("not a regular file"), std::string::npos);
}

TEST(ReadText, RefusesAFileAboveTheLimit) {
  const Scratch scratch;
  put(scratch / "a", "hello");
  EXPECT_EQ(read_text(scratch / "a", 5), "hello");
  EXPECT_NE(message_of([&] { read_text(scratch / "a", 4); }).find("limit of 4"), std::string::npos);
}

TEST(AtomicFile, AppearsOnlyOnCommitAndReplacesWhatWasThere) {
  const Scratch scratch;
  put(scratch / "a", "old");
  {
    AtomicFile file(scratch / "a");
    file.write("new text", 8);
    EXPECT_EQ(read_text(scratch / "a"), "old");
    file.commit();
  }
  EXPECT_EQ(read_text(scratch / "a"), "new text");
  EXPECT_EQ(scratch.files(), 1u);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const Scratch scratch;
  {
    AtomicFile file(scratch / "a");
    file.write("text", 4);
  }
  EXPECT_EQ(scratch.files(), 0u);
}

TEST(AtomicFile, KeepsTheModeOfTheFileItReplacesAndTheLinkItFollows) {
  const Scratch scratch;
  put(scratch / "a", "old");
  ::chmod((scratch / "a").c_str(), 0640);
  std::filesystem::create_symlink("a", scratch / "link");
  AtomicFile file(scratch / "link");
  file.write("new", 3);
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(scratch / "link"));
  EXPECT_EQ(read_text(scratch / "a"), "new");
  struct stat status {};
  ::stat((scratch / "a").c_str(), &status);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
}

TEST(AtomicFile, SaysWhichPathAndWhy) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "folder");
  const std::string missing = scratch / "none/a";
  EXPECT_NE(message_of([&] { AtomicFile(scratch / "folder"); }).find("folder': it is a directory"),
            std::string::npos);
  EXPECT_NE(message_of([&] { AtomicFile{missing}; }).find(missing), std::string::npos);
  EXPECT_EQ(code_of([&] { AtomicFile{missing}; }), ErrorCode::not_found);
  EXPECT_NE(message_of([] { AtomicFile(""); }).find("empty"), std::string::npos);
  EXPECT_NE(message_of([] { AtomicFile("/dev/null"); }).find("not a regular file"), std::string::npos);
}

TEST(AtomicFile, RefusesProtectedFilesAndFolders) {
  if (::geteuid() == 0) GTEST_SKIP() << "the superuser may write everywhere";
  const Scratch scratch;
  put(scratch / "a", "old");
  ::chmod((scratch / "a").c_str(), 0400);
  EXPECT_NE(message_of([&] { AtomicFile(scratch / "a"); }).find("Permission denied"), std::string::npos);
  std::filesystem::create_directory(scratch / "folder");
  ::chmod((scratch / "folder").c_str(), 0500);
  EXPECT_NE(message_of([&] { AtomicFile(scratch / "folder/a"); }).find("Permission denied"),
            std::string::npos);
  ::chmod((scratch / "folder").c_str(), 0700);
}

TEST(AtomicFile, ReportsAFailedWriteAndRemovesTheTemporary) {
  const Scratch scratch;
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit tight{1000, limit.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &tight);
  const std::string text(5000, 'x');
  const std::string message = message_of([&] {
    AtomicFile file(scratch / "a");
    file.write(text.data(), text.size());
    file.commit();
  });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);
  EXPECT_NE(message.find("File too large"), std::string::npos) << message;
  EXPECT_EQ(scratch.files(), 0u);
}

}  // namespace
}  // namespace fovea::io
