// SPDX-License-Identifier: Apache-2.0
//
// Beats and control messages: what is encoded decodes, whatever strings a node puts in; what is out of bounds does not.
#include "daemon/wire/beat.h"

#include <gtest/gtest.h>

#include "daemon/wire/messages.h"

namespace holdfast {
namespace {

Beat FullBeat() {
  Beat b;
  b.root = Nonce::Random();
  b.node = "spark-1";
  b.incarnation = Nonce::Random();
  b.count = 17;
  b.wall_ns = 1;
  b.hostname = "spark1.local";
  b.endpoint = "tcp://10.0.0.2:41234";
  b.public_key = std::string(40, 'k');
  b.version = "0.2.0";
  b.numerics = "cpu/bf16/avx512_bf16/libtorch-1.13.1";
  b.device = "cpu";
  b.pid = 77;
  b.memory_bytes = 128ull << 30;
  b.speed = 41;
  b.threads = 20;
  b.pressure = 250;
  b.draining = true;
  b.storage_stalled_ms = 1500;
  b.coordinates = {"0123456789ab"};
  b.warnings = {"root is not shared with n2"};
  TaskBeat t;
  t.job = "0123456789ab";
  t.stage = kMergeTask;
  t.state = "refused";
  t.phase = "merge";
  t.samples_done = UINT64_MAX;
  t.pid = 12345;
  t.last_death = "signal 9";
  t.error_code = "invalid_argument";
  t.error = "source /models/x is missing here";
  b.tasks = {t};
  return b;
}

Beat BeatOfTwoDevices() {
  Beat b = FullBeat();
  b.device = "cuda:0,cuda:1";
  b.devices = {{"cuda:0", "cuda/bf16/x", 80ull << 30, 900}, {"cuda:1", "cuda/bf16/x", 79ull << 30, 901}};
  b.tasks[0].device = "cuda:1";
  return b;
}

TEST(Beat, RoundTripKeepsEveryField) {
  const Beat b = FullBeat();
  const auto back = Beat::Decode(b.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->Encode(), b.Encode());
  EXPECT_EQ(back->root, b.root);
  EXPECT_EQ(back->incarnation, b.incarnation);
  EXPECT_EQ(back->count, 17u);
  EXPECT_EQ(back->endpoint, b.endpoint);
  EXPECT_TRUE(back->draining);
  EXPECT_EQ(back->coordinates, b.coordinates);
  EXPECT_EQ(back->warnings, b.warnings);
  ASSERT_EQ(back->tasks.size(), 1u);
  EXPECT_EQ(back->tasks[0].stage, kMergeTask);
  EXPECT_EQ(back->tasks[0].samples_done, UINT64_MAX);
  EXPECT_EQ(back->tasks[0].pid, 12345);
  EXPECT_EQ(back->tasks[0].error, b.tasks[0].error);
}

TEST(Beat, AnyStringsAndAnyListsStayWithinTheBoundsAndDecode) {
  Beat b = FullBeat();
  b.hostname = std::string(100000, '"');
  b.device = "gpu\x1b[31m\xc2\x9b\n\xff\xfe";
  b.warnings.assign(1000, std::string(1000, '\\'));
  b.coordinates.assign(1000, "0123456789ab");
  for (std::string* s : {&b.tasks[0].error, &b.tasks[0].phase, &b.tasks[0].last_death}) *s = std::string(5000, '"');
  b.tasks.resize(1000, b.tasks[0]);
  const std::string text = b.Encode();
  EXPECT_LE(text.size(), kBeatBytesMax);
  const auto back = Beat::Decode(text);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->tasks.size(), kBeatTasksMax);
  EXPECT_EQ(back->device.find('\x1b'), std::string::npos);
  EXPECT_EQ(back->device.find("\xc2\x9b"), std::string::npos);
  EXPECT_EQ(back->device.find('\n'), std::string::npos);
}

TEST(Beat, LongUtf8IsCutBetweenCharacters) {
  Beat b = FullBeat();
  b.hostname.clear();
  for (int i = 0; i < 300; ++i) b.hostname += "\xe2\x82\xac";  // three bytes each, and 256 is not a multiple of three
  const auto back = Beat::Decode(b.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->hostname.size(), 255u);
  EXPECT_EQ(b.hostname.compare(0, 255, back->hostname), 0);
}

TEST(Beat, OfTooManyTasksTheDoneOnesAreLeftOut) {
  Beat b = FullBeat();
  b.tasks[0].state = "done";
  b.tasks.resize(kBeatTasksMax, b.tasks[0]);
  b.tasks.push_back(b.tasks[0]);
  b.tasks.back().state = "running";
  const auto back = Beat::Decode(b.Encode());
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->tasks[0].state, "running");
}

TEST(Beat, SeveralDevicesAreListedAndOneIsNot) {
  const Beat two = BeatOfTwoDevices();
  const auto back = Beat::Decode(two.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->Encode(), two.Encode());
  ASSERT_EQ(back->devices.size(), 2u);
  EXPECT_EQ(back->devices[1].name, "cuda:1");
  EXPECT_EQ(back->devices[1].memory_bytes, 79ull << 30);
  EXPECT_EQ(back->tasks[0].device, "cuda:1");
  // What a daemon of before says, and what one of before understands.
  const std::string one = FullBeat().Encode();
  EXPECT_EQ(one.find("devices"), std::string::npos);
  EXPECT_EQ(one.find("\"device\":\"\""), std::string::npos);
  EXPECT_TRUE(Beat::Decode(one)->devices.empty());
  Beat many = two;
  many.devices.resize(kBeatDevicesMax + 10, many.devices[0]);
  EXPECT_EQ(Beat::Decode(many.Encode())->devices.size(), kBeatDevicesMax);
}

TEST(Beat, WhatAGpuMayTakeOfItsHostIsSaidWhereThereIsOne) {
  Beat b = BeatOfTwoDevices();
  EXPECT_EQ(b.Encode().find("host_bytes"), std::string::npos);
  b.host_bytes = 5ull << 30;
  b.devices[1].host_bytes = 5ull << 30;
  const auto back = Beat::Decode(b.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->host_bytes, 5ull << 30);
  EXPECT_EQ(back->devices[0].host_bytes, 0u);
  EXPECT_EQ(back->devices[1].host_bytes, 5ull << 30);
  EXPECT_EQ(back->Encode(), b.Encode());
}

// Replaces the first `from` in the encoded beat.
Result<Beat> DecodeWith(const std::string& from, const std::string& to) {
  std::string text = FullBeat().Encode();
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return Beat::Decode(text);
}

TEST(Beat, WhatIsOutOfBoundsIsCorrupt) {
  const std::pair<const char*, const char*> cases[] = {
      {"\"node\":\"spark-1\"", "\"node\":\"../etc\""},
      {"\"node\":\"spark-1\"", "\"node\":\"\""},
      {"\"stage\":65535", "\"stage\":65536"},
      {"\"pressure\":250", "\"pressure\":10001"},
      {"\"pid\":12345", "\"pid\":9223372036854775808"},
      {"\"count\":17", "\"count\":-17"},
      {"\"count\":17", "\"count\":1.5"},
      {"\"count\":17", "\"count\":\"17\""},
      {"\"count\":17", "\"count\":18446744073709551616"},
      {"\"draining\":true", "\"draining\":1"},
      {"\"draining\":true", "\"draining\":true,\"host_bytes\":-1"},
      {"\"device\":\"cpu\"", "\"device\":\"\\u001b[2J\""},
      {"\"job\":\"0123456789ab\"", "\"job\":\"0123456789a\""},
      {"[\"0123456789ab\"]", "[\"0123456789aB\"]"},
      {"[\"0123456789ab\"]", "[7]"},
      {"[\"root is", "[[],\"root is"},
      {"\"tasks\":[", "\"tasks\":[0,"},
      {"\"threads\":20", "\"threads\":20,\"threads\":20"},
      {"\"hostname\"", "\"hostnome\""},
  };
  for (const auto& [from, to] : cases) EXPECT_EQ(DecodeWith(from, to).code(), ErrorCode::kCorrupt) << from << " -> " << to;
  EXPECT_EQ(DecodeWith(std::string(40, 'k'), "short").code(), ErrorCode::kCorrupt);
  EXPECT_EQ(Beat::Decode(std::string(kBeatBytesMax + 1, ' ')).code(), ErrorCode::kCorrupt);
}

TEST(Beat, AnotherVersionIsUnsupportedAndNewFieldsAreNot) {
  const std::string v = "\"v\":" + std::to_string(kWireVersion);
  EXPECT_EQ(DecodeWith(v, "\"v\":99").code(), ErrorCode::kUnsupported);
  EXPECT_TRUE(DecodeWith(v, v + ",\"zeal\":7").ok());
}

TEST(ControlMessage, RoundTripOfEachKind) {
  using Kind = ControlMessage::Kind;
  for (Kind kind : {Kind::kBeat, Kind::kHint, Kind::kAskBeats, Kind::kBeats}) {
    ControlMessage m;
    m.kind = kind;
    m.root = Nonce::Random();
    if (kind == Kind::kBeat) m.beats = {FullBeat()};
    if (kind == Kind::kBeats) m.beats = {FullBeat(), FullBeat()};
    if (kind == Kind::kHint) m.job = "0123456789ab", m.stream = "stage.01";
    const auto back = ControlMessage::Decode(m.Encode());
    ASSERT_TRUE(back.ok()) << back.error().message;
    EXPECT_EQ(back->kind, kind);
    EXPECT_EQ(back->root, m.root);
    EXPECT_EQ(back->beats.size(), m.beats.size());
    EXPECT_EQ(back->job, m.job);
    EXPECT_EQ(back->stream, m.stream);
  }
}

TEST(ControlMessage, AnswersNeverExceedWhatASocketTakes) {
  ControlMessage m;
  m.kind = ControlMessage::Kind::kBeats;
  Beat large = FullBeat();
  large.tasks.resize(kBeatTasksMax, large.tasks[0]);
  m.beats.assign(kBeatsMax, large);
  const std::string text = m.Encode();
  EXPECT_LE(text.size(), kControlBytesMax);
  const auto back = ControlMessage::Decode(text);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_GE(back->beats.size(), 10u);
}

TEST(ControlMessage, WrongNumberOfBeatsAndUnknownKindsAreRefused) {
  ControlMessage m;
  m.kind = ControlMessage::Kind::kBeat;
  EXPECT_EQ(ControlMessage::Decode(m.Encode()).code(), ErrorCode::kCorrupt);
  m.beats = {FullBeat(), FullBeat()};
  EXPECT_EQ(ControlMessage::Decode(m.Encode()).code(), ErrorCode::kCorrupt);
  m.kind = ControlMessage::Kind::kHint;
  EXPECT_EQ(ControlMessage::Decode(m.Encode()).code(), ErrorCode::kCorrupt);
  m.beats.clear();
  std::string text = m.Encode();
  text.replace(text.find("\"hint\""), 6, "\"gift\"");
  EXPECT_EQ(ControlMessage::Decode(text).code(), ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace holdfast
