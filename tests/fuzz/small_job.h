// SPDX-License-Identifier: Apache-2.0
//
// The job that folds are fuzzed with, and that the seeds are made of: two layers of one site each, two samples of three tokens.
#pragma once

#include <string>
#include <vector>

#include "ledger/records/records.h"

namespace holdfast::fuzz {

inline Digest FixedDigest(uint8_t fill) {
  Digest d;
  d.bytes.fill(fill);
  return d;
}

inline const std::vector<std::vector<int32_t>>& SmallTokens() {
  static const std::vector<std::vector<int32_t>> tokens = {{1, 2, 3}, {4, 5, 6}};
  return tokens;
}

inline Plan SmallPlan() {
  Plan p;
  p.layers = 2;
  p.hidden_size = 16;
  for (uint32_t i = 0; i < p.layers + 2; ++i) {
    UnitPlan u;
    u.id = i;
    u.label = i < p.layers ? "layer " + std::to_string(i) : i == p.layers ? "embed" : "head";
    u.tensors.push_back({"t" + std::to_string(i), DType::kBF16, {2, 16}, 0, 64ull * i, 64});
    if (i < p.layers) u.sites = {{"model.layers." + std::to_string(i) + ".a", 0, 2, 16}};
    p.units.push_back(std::move(u));
  }
  p.stages = {{StageId(0), 0, 1}, {StageId(1), 1, 2}};
  p.ignore = {"lm_head"};
  return p;
}

inline JobSpec SmallJob(const Nonce& uuid) {
  JobSpec j;
  j.uuid = uuid;
  j.name = "night-1";
  j.source = "/models/small";
  j.out = "/models/small-nvfp4";
  j.calib = "/calib.jsonl";
  j.recipe = "nvfp4";
  j.architecture = "LlamaForCausalLM";
  j.numerics = "cpu/test";
  j.samples = 2;
  j.skip_samples = 1;
  j.seq_len = 16;
  j.shard_bytes = 1u << 30;
  Bytes tokens;
  for (const auto& ids : SmallTokens()) {
    PutLe<uint32_t>(&tokens, static_cast<uint32_t>(ids.size()));
    for (const int32_t id : ids) PutLe<uint32_t>(&tokens, static_cast<uint32_t>(id));
  }
  j.tokens_sha256 = Sha256(tokens);
  j.weights = {{"model.safetensors", 1000, 5, FixedDigest(1), FixedDigest(2)}};
  j.sidecars = {{"config.json", 10, 6, FixedDigest(3), {}}};
  return j;
}

inline std::vector<Record> SmallJobRecords(const Nonce& uuid) {
  std::vector<Record> records = {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, SmallJob(uuid).ToJson()),
                                 MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, SmallPlan().ToJson())};
  for (uint32_t i = 0; i < SmallTokens().size(); ++i) {
    Record r;
    r.key = {RecordClass::kJob, 0, i, 0, 1};
    r.payload = EncodeTokens(SmallTokens()[i]);
    records.push_back(r);
  }
  return records;
}

}  // namespace holdfast::fuzz
