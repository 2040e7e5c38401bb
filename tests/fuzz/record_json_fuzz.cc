// SPDX-License-Identifier: Apache-2.0
//
// What records say. Input: class of the record (u8), length of a binary part (u8), the binary part, JSON.
#include "ledger/records/records.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

using fuzz::CheckJsonRoundTrip;

// Part 0 is JSON, part 1 the amax vector.
void CheckSample(const Bytes& amax, const Bytes& json) {
  Record control, second;
  control.key = {RecordClass::kSample, 1, 3, 0, 0};
  control.payload = json;
  second.key = {RecordClass::kSample, 1, 3, 0, 1};
  second.payload = amax;
  const auto sample = SampleRecord::FromRecords(control, second);
  if (!sample.ok()) return fuzz::CheckRefusal(sample);
  HOLDFAST_CHECK(sample->amax.size() == amax.size() / 4 && sample->first_layer < sample->last_layer);
  const std::vector<Record> again = sample->ToRecords(StageId(1));
  HOLDFAST_CHECK(again.size() == 2 && again[1].payload == amax && SampleRecord::FromRecords(again[0], again[1]).ok());
}

void CheckTokens(const Bytes& payload) {
  const auto ids = DecodeTokens(payload);
  if (!ids.ok()) return fuzz::CheckRefusal(ids);
  HOLDFAST_CHECK(EncodeTokens(*ids) == payload);
}

void CheckControl(RecordClass cls, const Json& j) {
  switch (cls) {
    case RecordClass::kJob: return CheckJsonRoundTrip<JobSpec>(j);
    case RecordClass::kPlan: return CheckJsonRoundTrip<Plan>(j);
    case RecordClass::kIncarnation: return CheckJsonRoundTrip<Incarnation>(j);
    case RecordClass::kClaim: return CheckJsonRoundTrip<Claim>(j);
    case RecordClass::kRelease: return CheckJsonRoundTrip<Release>(j);
    case RecordClass::kPhase: return CheckJsonRoundTrip<PhaseBegin>(j);
    case RecordClass::kAssignment: return CheckJsonRoundTrip<Assignment>(j);
    case RecordClass::kOmit: return CheckJsonRoundTrip<OmitRecord>(j);
    case RecordClass::kQueue: return CheckJsonRoundTrip<QueueRecord>(j);
    case RecordClass::kSource: return CheckJsonRoundTrip<SourceRead>(j);
    case RecordClass::kLayer: return CheckJsonRoundTrip<LayerRecord>(j);
    case RecordClass::kSeal: return CheckJsonRoundTrip<SealRecord>(j);
    case RecordClass::kMerge: return CheckJsonRoundTrip<MergeRecord>(j);
    case RecordClass::kDone: return CheckJsonRoundTrip<DoneRecord>(j);
    case RecordClass::kVoid: return CheckJsonRoundTrip<VoidRecord>(j);
    default: return;
  }
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  Cursor in({data, size});
  const auto cls = static_cast<RecordClass>(fuzz::Take<uint8_t>(&in));
  const Bytes binary = fuzz::TakeBytes(&in, fuzz::Take<uint8_t>(&in));
  Record record;
  record.payload = Bytes(in.rest().begin(), in.rest().end());
  CheckTokens(binary);
  CheckSample(binary, record.payload);
  const auto json = ControlPayload(record);
  if (json.ok()) CheckControl(cls, *json);
  else fuzz::CheckRefusal(json);
  return 0;
}
