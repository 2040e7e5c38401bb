// SPDX-License-Identifier: Apache-2.0
#include "ledger/log/tombstone.h"

#include "ledger/log/publish.h"
#include "ledger/segment/segment.h"

namespace holdfast {

Status PlaceTombstone(FileSystem& fs, const RunLayout& layout, const Clock& clock, const Tombstone& t, bool replace) {
  StageId stage;
  if (!RunLayout::ParseStageStream(t.stream, &stage)) stage = StageId(0);
  VoidRecord v;
  v.target = "slot";
  v.seq = t.seq;
  v.reason = t.reason;
  v.evidence = t.evidence;
  std::vector<Record> records = {MakeControl({RecordClass::kVoid, stage.value, t.seq, 0, 0}, v.ToJson())};
  if (!t.carries.IsZero()) {
    Record carried;
    carried.key = {RecordClass::kVoid, stage.value, t.seq, 0, 1};
    carried.payload.assign(t.carries.bytes.begin(), t.carries.bytes.end());
    records.push_back(std::move(carried));
  }
  for (Record& r : records) r.epoch = t.epoch, r.wall_ns = clock.WallNs();
  SegmentTrailer trailer;
  trailer.seq = t.seq;
  trailer.epoch = t.epoch;
  trailer.flags = kFlagTombstone;
  trailer.job = t.job;
  trailer.incarnation = t.incarnation;
  trailer.commit = Nonce::Random();
  trailer.stream = StreamId(t.stream);
  trailer.prev = t.prev;
  HOLDFAST_ASSIGN(const Segment segment, BuildSegment(trailer, records));
  HOLDFAST_TRY(fs.MakeDirs(layout.TmpDir(t.incarnation)));
  HOLDFAST_TRY(fs.MakeDirs(layout.StreamDir(t.stream)));
  PublishOptions options;
  options.tmp_dir = layout.TmpDir(t.incarnation);
  options.subject = t.stream;
  options.replace = replace;
  return Publish(fs, layout.Slot(t.stream, t.seq), segment.parts(), options);
}

}  // namespace holdfast
