// SPDX-License-Identifier: Apache-2.0
//
// The directory as a whole: checksums, strangers, the index. Every damaged byte of every file is found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/verify/tiny_output.h"

namespace holdfast::testing {
namespace {

using ::testing::UnorderedElementsAreArray;

std::string Text(const VerifyReport& report) {
  std::string out;
  for (const VerifyFinding& f : report.findings) out += f.code + " " + f.object + ": " + f.message + "\n";
  return out;
}

void ExpectError(const VerifyReport& report, const std::string& code, const std::string& object) {
  EXPECT_FALSE(report.ok());
  for (const VerifyFinding& f : report.findings) {
    if (f.code == code && f.object == object) return;
  }
  ADD_FAILURE() << code << " " << object << " is not among\n" << Text(report);
}

class Directory : public ::testing::Test {
 protected:
  Directory() : out({.layers = 2, .shards = 2}), dir(out.Write()) {}
  VerifyReport Verify() { return VerifyDir(dir, &out.plan); }
  void EditIndex(const std::function<void(Json*)>& edit) {
    const std::string path = dir + "/model.safetensors.index.json";
    Json index = *ParseJson(AsText(Slurp(path)), "index");
    edit(&index);
    Spill(path, AsBytes(index.dump(2)));
    WriteSums(dir);
  }

  TinyOutput out;
  std::string dir;
  PosixFileSystem fs;
};

TEST_F(Directory, ManifestMissing) {
  ASSERT_TRUE(fs.Unlink(dir + "/SHA256SUMS").ok());
  ExpectError(Verify(), "V001", "SHA256SUMS");
}

TEST_F(Directory, FileMissing) {
  ASSERT_TRUE(fs.Unlink(dir + "/hf_quant_config.json").ok());
  ExpectError(Verify(), "V002", "hf_quant_config.json");
}

TEST_F(Directory, UnlistedFile) {
  Spill(dir + "/notes.txt", AsBytes("hello"));
  ExpectError(Verify(), "V004", "notes.txt");
}

TEST_F(Directory, UnlistedFileInASubdirectory) {
  ASSERT_TRUE(fs.MakeDirs(dir + "/sub").ok());
  Spill(dir + "/sub/notes.txt", AsBytes("hello"));
  ExpectError(Verify(), "V004", "sub/notes.txt");
}

TEST_F(Directory, PartialNames) {
  for (const char* name : {"model.safetensors.tmp", "__shard_part_00001.safetensors", "x.incomplete", ".nfs0001"}) {
    Spill(dir + "/" + name, AsBytes("x"));
    WriteSums(dir);
    ExpectError(Verify(), "V005", name);
    ASSERT_TRUE(fs.Unlink(dir + "/" + name).ok());
  }
}

TEST_F(Directory, StrayShard) {
  WriteSafetensors(dir + "/extra.safetensors", {{"x", {DType::kF32, {1}, Bytes(4)}}});
  WriteSums(dir);
  ExpectError(Verify(), "V010", "extra.safetensors");
}

TEST_F(Directory, ShardMissing) {
  ASSERT_TRUE(fs.Unlink(dir + "/model-00002-of-00002.safetensors").ok());
  WriteSums(dir);
  const VerifyReport report = Verify();
  ExpectError(report, "V007", "model-00002-of-00002.safetensors");
  EXPECT_EQ(report.findings.size(), 1u) << Text(report);
}

TEST_F(Directory, NoWeightsAtAll) {
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}) {
    ASSERT_TRUE(fs.Unlink(dir + "/" + name).ok());
  }
  WriteSums(dir);
  ExpectError(Verify(), "V007", "model.safetensors");
}

TEST_F(Directory, IndexForgetsATensor) {
  EditIndex([](Json* j) { (*j)["weight_map"].erase("model.norm.weight"); });
  ExpectError(Verify(), "V008", "model.norm.weight");
}

TEST_F(Directory, IndexNamesAnUnknownTensor) {
  EditIndex([](Json* j) { (*j)["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"; });
  ExpectError(Verify(), "V008", "ghost.weight");
}

TEST_F(Directory, IndexNamesTheWrongShard) {
  EditIndex([](Json* j) { (*j)["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"; });
  ExpectError(Verify(), "V008", "lm_head.weight");
}

TEST_F(Directory, TensorInTwoShards) {
  std::map<std::string, StoredBytes> first, second;
  for (const auto& [name, t] : out.tensors) (name < "model.layers.1" ? first : second)[name] = t;
  second["lm_head.weight"] = first.at("lm_head.weight");
  WriteSafetensors(dir + "/model-00001-of-00002.safetensors", first);
  WriteSafetensors(dir + "/model-00002-of-00002.safetensors", second);
  WriteSums(dir);
  ExpectError(Verify(), "V008", "lm_head.weight");
}

TEST_F(Directory, TotalSizeWrong) {
  EditIndex([](Json* j) { (*j)["metadata"]["total_size"] = 1; });
  ExpectError(Verify(), "V009", "model.safetensors.index.json");
}

TEST_F(Directory, TotalSizeMissing) {
  EditIndex([](Json* j) { j->erase("metadata"); });
  ExpectError(Verify(), "V009", "model.safetensors.index.json");
}

TEST_F(Directory, FewerShardsThanTheNamesPromise) {
  std::map<std::string, StoredBytes> all = out.tensors;
  WriteSafetensors(dir + "/model-00001-of-00002.safetensors", all);
  ASSERT_TRUE(fs.Unlink(dir + "/model-00002-of-00002.safetensors").ok());
  EditIndex([](Json* j) {
    for (auto& [name, file] : (*j)["weight_map"].items()) file = "model-00001-of-00002.safetensors";
  });
  ExpectError(Verify(), "V007", "model-00001-of-00002.safetensors");
}

TEST_F(Directory, IndexWithAPathIsRefused) {
  EditIndex([](Json* j) { (*j)["weight_map"]["lm_head.weight"] = "../../etc/passwd"; });
  ExpectError(Verify(), "V007", "model.safetensors.index.json");
}

TEST_F(Directory, ManifestWithAPathOutsideIsRefused) {
  Bytes sums = Slurp(dir + "/SHA256SUMS");
  const std::string line = std::string(64, '0') + "  ../secret\n";
  sums.insert(sums.end(), line.begin(), line.end());
  Spill(dir + "/SHA256SUMS", sums);
  const VerifyReport report = Verify();
  EXPECT_FALSE(report.ok());
  EXPECT_NE(Text(report).find("V001"), std::string::npos);
}

// Flips one byte of `name` at each of `positions` and expects an error each time.
void FlipBytes(const std::string& dir, const Plan& plan, const std::string& name, size_t step) {
  const Bytes sound = Slurp(dir + "/" + name);
  uint8_t mask = 1;
  for (size_t at = 0; at < sound.size(); at += step) {
    Bytes damaged = sound;
    mask = static_cast<uint8_t>(mask << 1 | mask >> 7);
    damaged[at] ^= mask;
    Spill(dir + "/" + name, damaged);
    const VerifyReport report = VerifyDir(dir, &plan);
    ASSERT_FALSE(report.ok()) << name << " byte " << at << " ^ " << int{mask};
  }
  Spill(dir + "/" + name, sound);
  EXPECT_TRUE(VerifyDir(dir, &plan).ok());
}

TEST(EveryByte, OfTheManifest) {
  TinyOutput out({.layers = 1, .hidden = 32, .intermediate = 32, .kv = 32, .vocab = 32});
  const std::string dir = out.Write();
  FlipBytes(dir, out.plan, "SHA256SUMS", 1);
}

TEST(EveryByte, OfTheManifestInEveryBit) {
  TinyOutput out({.layers = 1, .hidden = 32, .intermediate = 32, .kv = 32, .vocab = 32});
  const std::string dir = out.Write();
  const Bytes sound = Slurp(dir + "/SHA256SUMS");
  for (size_t at = 0; at < sound.size(); ++at) {
    for (const int bit : {0, 3, 5, 7}) {  // 5: upper case of a hex digit
      Bytes damaged = sound;
      damaged[at] ^= static_cast<uint8_t>(1 << bit);
      Spill(dir + "/SHA256SUMS", damaged);
      ASSERT_FALSE(VerifyDir(dir, &out.plan).ok()) << "byte " << at << " bit " << bit;
    }
  }
}

TEST(EveryByte, OfTheConfigs) {
  TinyOutput out({.layers = 1, .hidden = 32, .intermediate = 32, .kv = 32, .vocab = 32});
  const std::string dir = out.Write();
  FlipBytes(dir, out.plan, "config.json", 1);
  FlipBytes(dir, out.plan, "hf_quant_config.json", 1);
}

TEST(EveryByte, OfTheWeights) {
  TinyOutput out({.layers = 1, .hidden = 32, .intermediate = 32, .kv = 32, .vocab = 32});
  const std::string dir = out.Write();
  FlipBytes(dir, out.plan, "model.safetensors", 29);
}

}  // namespace
}  // namespace holdfast::testing
