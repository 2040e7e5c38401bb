// SPDX-License-Identifier: Apache-2.0
//
// The safetensors reader against sound, damaged and hostile headers; model directories; the writer's layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>

#include "export/format/safetensors.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

Bytes FileWithHeader(const std::string& header, uint64_t data_bytes) {
  Bytes out;
  PutLe(&out, static_cast<uint64_t>(header.size()));
  out.insert(out.end(), header.begin(), header.end());
  out.resize(out.size() + data_bytes, 7);
  return out;
}

Result<std::vector<TensorInfo>> Parse(const Bytes& file) {
  return ParseSafetensorsHeader(file, file.size(), "m.safetensors");
}
Result<std::vector<TensorInfo>> Parse(const std::string& header, uint64_t data_bytes) {
  return Parse(FileWithHeader(header, data_bytes));
}

void ExpectRefused(const Result<std::vector<TensorInfo>>& r, const std::string& why) {
  ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(r.error().message, HasSubstr("m.safetensors"));
  EXPECT_THAT(r.error().message, HasSubstr(why));
}

constexpr char kTwo[] =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";

TEST(SafetensorsHeader, ReadsByOffset) {
  const auto r = Parse(kTwo, 12);
  ASSERT_TRUE(r.ok()) << r.error().message;
  ASSERT_EQ(r->size(), 2u);
  EXPECT_EQ((*r)[0].name, "a");
  EXPECT_EQ((*r)[0].shape, std::vector<uint64_t>{});
  EXPECT_EQ((*r)[0].offset, 8 + sizeof(kTwo) - 1);
  EXPECT_EQ((*r)[1].name, "b");
  EXPECT_EQ((*r)[1].bytes, 8u);
}

TEST(SafetensorsHeader, EmptyTensorsAndNoTensors) {
  EXPECT_TRUE(Parse("{}", 0).ok());
  EXPECT_TRUE(
      Parse(
          R"({"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
          1)
          .ok());
}

TEST(SafetensorsHeader, TruncatedFile) {
  ExpectRefused(Parse(Bytes{1, 2, 3}), "only 3 bytes long");
  ExpectRefused(Parse(Bytes(8)), "does not begin with");
  Bytes file = FileWithHeader(kTwo, 12);
  file.resize(40);
  ExpectRefused(Parse(file), "truncated");
  ExpectRefused(Parse(kTwo, 11), "truncated: tensor \"b\"");
}

TEST(SafetensorsHeader, TailBelongsToNothing) {
  ExpectRefused(Parse(kTwo, 13), "1 bytes after the last tensor");
}

TEST(SafetensorsHeader, OversizedHeader) {
  Bytes file;
  PutLe(&file, kSafetensorsHeaderMax + 1);
  ExpectRefused(Parse(file), "claims a header of");
  file.clear();
  PutLe(&file, ~uint64_t{0});
  ExpectRefused(Parse(file), "claims a header of");
}

TEST(SafetensorsHeader, Overlap) {
  ExpectRefused(
      Parse(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
          6),
      "overlaps the one before it");
  ExpectRefused(
      Parse(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          4),
      "overlaps the one before it");
}

TEST(SafetensorsHeader, Gap) {
  ExpectRefused(Parse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8),
                "leaves a gap before it");
}

TEST(SafetensorsHeader, DuplicateKey) {
  ExpectRefused(
      Parse(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2),
      "duplicate key \"a\"");
}

TEST(SafetensorsHeader, UnknownDtype) {
  ExpectRefused(Parse(R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}})", 1),
                "tensor \"a\": unknown dtype \"F4\"");
}

TEST(SafetensorsHeader, WrongByteCount) {
  ExpectRefused(Parse(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
                "dtype and shape need 8 bytes");
  ExpectRefused(Parse(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[4,2]}})", 4),
                "need 2 bytes");
}

TEST(SafetensorsHeader, ShapeOverflow) {
  ExpectRefused(
      Parse(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
      "more than 2^64");
  ExpectRefused(
      Parse(R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4),
      "more than 2^64");
  ExpectRefused(
      Parse(R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}})", 4),
      "\"shape\"");
}

TEST(SafetensorsHeader, HugeOffsetsDoNotWrap) {
  ExpectRefused(
      Parse(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[18446744073709551614,18446744073709551615]}})",
          1),
      "need 2 bytes");
  ExpectRefused(
      Parse(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}})",
          1),
      "truncated");
}

TEST(SafetensorsHeader, WrongTypes) {
  ExpectRefused(Parse(R"({"a":3})", 0), "expected an object");
  ExpectRefused(Parse(R"({"a":{"dtype":3,"shape":[1],"data_offsets":[0,1]}})", 1),
                "\"dtype\" is not a string");
  ExpectRefused(Parse(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
                "non-negative");
  ExpectRefused(Parse(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1),
                "non-negative");
  ExpectRefused(Parse(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "\"data_offsets\" is missing");
  ExpectRefused(Parse(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1), "pair");
  ExpectRefused(Parse(R"({"__metadata__":{"format":1}})", 0), "__metadata__");
  ExpectRefused(Parse("[]", 0), "does not begin with");
  ExpectRefused(Parse("{}x", 0), "not valid JSON");
  ExpectRefused(Parse(std::string(200, '{'), 0), "not valid JSON");
}

// Mutated headers: any answer is fine as long as it is one; an accepted header must tile the file.
void CheckAnswer(const Bytes& file) {
  const auto r = Parse(file);
  if (!r.ok()) {
    ASSERT_EQ(r.code(), ErrorCode::kInvalidArgument);
    ASSERT_THAT(r.error().message, HasSubstr("m.safetensors"));
    return;
  }
  uint64_t at = file.size();
  for (auto t = r->rbegin(); t != r->rend(); ++t) {
    ASSERT_EQ(t->offset + t->bytes, at);
    at = t->offset;
  }
}

constexpr int kFuzzRounds = 200000;
constexpr auto kFuzzTime = std::chrono::seconds(10);

TEST(SafetensorsFuzz, MutationsOfAValidHeader) {
  std::mt19937 random(99);
  const auto end = std::chrono::steady_clock::now() + kFuzzTime;
  const Bytes valid = FileWithHeader(kTwo, 12);
  const std::string tokens[] = {
      "0",  "9",    "\"",   "{",       "}",   "[",   "]", ",", "18446744073709551615",
      "-1", "1e99", "null", "\\u0000", "F32", "\xff"};
  for (int i = 0; i < kFuzzRounds && std::chrono::steady_clock::now() < end; ++i) {
    Bytes file = valid;
    for (int edits = 1 + random() % 3; edits > 0 && !file.empty(); --edits) {
      const size_t at = random() % file.size();
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          file.erase(file.begin() + static_cast<long>(at));
          break;
        case 2:
          file.resize(at);
          break;
        default: {
          const std::string& t = tokens[random() % std::size(tokens)];
          file.insert(file.begin() + static_cast<long>(at), t.begin(), t.end());
          if (file.size() > 8) file[0] = static_cast<uint8_t>(file[0] + t.size());
        }
      }
    }
    CheckAnswer(file);
  }
}

std::string RandomJson(std::mt19937* random, int depth) {
  const char* scalars[] = {"0",
                           "1",
                           "-3",
                           "4",
                           "1.5",
                           "true",
                           "null",
                           "\"F32\"",
                           "\"U8\"",
                           "\"\"",
                           "[0,4]",
                           "[1]",
                           "18446744073709551615"};
  if (depth == 0 || (*random)() % 3 == 0) return scalars[(*random)() % std::size(scalars)];
  const char* keys[] = {"a", "b", "dtype", "shape", "data_offsets", "__metadata__"};
  const bool object = (*random)() % 3 != 0;
  std::string out = object ? "{" : "[";
  for (int n = static_cast<int>((*random)() % 4); n > 0; --n) {
    if (out.size() > 1) out += ',';
    if (object) out += std::string("\"") + keys[(*random)() % std::size(keys)] + "\":";
    out += RandomJson(random, depth - 1);
  }
  return out + (object ? "}" : "]");
}

TEST(SafetensorsFuzz, RandomJson) {
  std::mt19937 random(7);
  const auto end = std::chrono::steady_clock::now() + kFuzzTime;
  for (int i = 0; i < kFuzzRounds && std::chrono::steady_clock::now() < end; ++i) {
    CheckAnswer(FileWithHeader(RandomJson(&random, 4), random() % 12));
  }
}

// ---- the writer ----

TEST(SafetensorsLayout, OrderPaddingAndOffsets) {
  const SafetensorsLayout l = LayOutSafetensors({{"z.weight", DType::kU8, {2, 4}, 0, 0},
                                                 {"b", DType::kF8E4M3, {2, 1}, 0, 0},
                                                 {"n", DType::kBF16, {3}, 0, 0},
                                                 {"s2", DType::kF32, {}, 0, 0},
                                                 {"s1", DType::kF32, {}, 0, 0}});
  const std::string text(l.header.begin() + 8, l.header.end());
  EXPECT_EQ(
      text.substr(0, text.find_last_not_of(' ') + 1),
      R"({"__metadata__":{"format":"pt"},"s1":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("s2":{"dtype":"F32","shape":[],"data_offsets":[4,8]},"n":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},)"
      R"("b":{"dtype":"F8_E4M3","shape":[2,1],"data_offsets":[14,16]},"z.weight":{"dtype":"U8","shape":[2,4],"data_offsets":[16,24]}})");
  EXPECT_EQ(l.header.size() % 8, 0u);
  EXPECT_EQ(l.file_size, l.header.size() + 24);
  Bytes file = l.header;
  file.resize(l.file_size);
  const auto again = Parse(file);
  ASSERT_TRUE(again.ok()) << again.error().message;
  ASSERT_EQ(again->size(), l.tensors.size());
  for (size_t i = 0; i < again->size(); ++i) EXPECT_EQ((*again)[i].name, l.tensors[i].name);
}

TEST(SafetensorsLayout, HeadersOfTheGoldenExports) {
  PosixFileSystem fs;
  for (const char* name :
       {"a_llama_nvfp4/model.safetensors", "g_llama_w4a16/model.safetensors",
        "h_qwen3moe/model.safetensors", "l_llama_mlponly/model-00002-of-00004.safetensors",
        "n_float16/model.safetensors"}) {
    const auto file =
        SafetensorsFile::Open(fs, std::string(HOLDFAST_SOURCE_DIR "/tests/golden/exports/") + name);
    ASSERT_TRUE(file.ok()) << file.error().message;
    const SafetensorsLayout l = LayOutSafetensors((*file)->tensors());
    EXPECT_EQ(Sha256(l.header), (*file)->header_sha256()) << name;
    EXPECT_EQ(l.file_size, (*file)->size());
  }
}

// ---- model directories ----

class ModelDir : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/holdfast_model_" + std::to_string(getpid()) + "_" +
           testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name, std::ios::binary) << text;
  }
  void WriteTensors(const std::string& file, const std::vector<std::string>& names) {
    std::vector<TensorInfo> tensors;
    for (const auto& n : names) tensors.push_back({n, DType::kU8, {4}, 0, 0});
    const SafetensorsLayout l = LayOutSafetensors(tensors);
    Write(file, std::string(l.header.begin(), l.header.end()) + std::string(4 * names.size(), 'x'));
  }
  void WriteIndex(const std::string& map) {
    Write("model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + map + "}");
  }
  void ExpectRefused(const std::string& why) {
    const auto model = SourceModel::Open(fs_, dir_);
    ASSERT_EQ(model.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(model.error().message, HasSubstr(why));
  }
  std::string dir_;
  PosixFileSystem fs_;
};

TEST_F(ModelDir, SingleFile) {
  WriteTensors("model.safetensors", {"a", "b"});
  WriteTensors("other.safetensors", {"c"});
  const auto model = SourceModel::Open(fs_, dir_);
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ((*model)->tensors().size(), 2u);
  EXPECT_EQ((*model)->total_bytes(), 8u);
  Bytes out(4);
  const auto* place = (*model)->Find("b");
  ASSERT_NE(place, nullptr);
  ASSERT_TRUE(place->file->Read(*place->tensor, out).ok());
  EXPECT_EQ(out, Bytes(4, 'x'));
}

TEST_F(ModelDir, IndexedAndSymlinked) {
  std::filesystem::create_directories(dir_ + "/blobs");
  WriteTensors("blobs/one", {"a"});
  std::filesystem::create_symlink("blobs/one", dir_ + "/model-1.safetensors");
  WriteTensors("model-2.safetensors", {"b", "c"});
  WriteTensors("consolidated.safetensors", {"a"});
  WriteIndex(R"({"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors"})");
  const auto model = SourceModel::Open(fs_, dir_);
  ASSERT_TRUE(model.ok()) << model.error().message;
  ASSERT_EQ((*model)->files().size(), 2u);
  EXPECT_EQ((*model)->Find("c")->file_index, 1u);
  EXPECT_EQ((*model)->Find("nope"), nullptr);
}

TEST_F(ModelDir, NothingThere) {
  ExpectRefused("no weights found");
  Write("pytorch_model.bin", "x");
  ExpectRefused("convert the model to safetensors");
}

TEST_F(ModelDir, IndexNamesAMissingFile) {
  WriteIndex(R"({"a":"model-1.safetensors"})");
  ExpectRefused("names model-1.safetensors, which is not there");
}

TEST_F(ModelDir, IndexNamesAMissingTensor) {
  WriteTensors("model-1.safetensors", {"a"});
  WriteIndex(R"({"a":"model-1.safetensors","b":"model-1.safetensors"})");
  ExpectRefused("names tensor \"b\", which model-1.safetensors does not hold");
}

TEST_F(ModelDir, IndexLeavesOutATensor) {
  WriteTensors("model-1.safetensors", {"a", "b"});
  WriteIndex(R"({"a":"model-1.safetensors"})");
  ExpectRefused("leaves out tensor \"b\"");
}

TEST_F(ModelDir, TensorInTwoFiles) {
  WriteTensors("model-1.safetensors", {"a", "b"});
  WriteTensors("model-2.safetensors", {"b"});
  WriteIndex(R"({"a":"model-1.safetensors","b":"model-2.safetensors"})");
  const auto model = SourceModel::Open(fs_, dir_);
  ASSERT_EQ(model.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(model.error().message,
              testing::AnyOf(HasSubstr("in two files"), HasSubstr("but it lies in")));
}

TEST_F(ModelDir, IndexEscapesTheDirectory) {
  for (const char* name : {"../x", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\\\b"}) {
    WriteIndex(std::string(R"({"a":")") + name + "\"}");
    ExpectRefused("only plain names inside the model directory");
  }
  WriteIndex(R"({"a":"x\u0000y"})");
  ExpectRefused("only plain names");
}

TEST_F(ModelDir, IndexOfWrongShape) {
  WriteIndex("[]");
  ExpectRefused("\"weight_map\" is not an object");
  WriteIndex(R"({"a":3})");
  ExpectRefused("is not a string");
  WriteIndex("{}");
  ExpectRefused("weight_map is empty");
}

TEST_F(ModelDir, BothASingleFileAndAnUnrelatedIndex) {
  WriteTensors("model.safetensors", {"a"});
  WriteTensors("model-1.safetensors", {"a"});
  WriteIndex(R"({"a":"model-1.safetensors"})");
  ExpectRefused("holds both");
}

}  // namespace
}  // namespace holdfast
