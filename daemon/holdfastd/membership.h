// SPDX-License-Identifier: Apache-2.0
//
// A daemon among others: its name's stream in the root (claimed, so that a twin is fenced), what it says of itself, and whom it hears.
// Life is judged by beats that move, over ZeroMQ or, where that is silent, by the files in <root>/beats. Single-threaded.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/transport/control_link.h"
#include "daemon/wire/beat.h"
#include "daemon/wire/beat_pace.h"
#include "ledger/base/clock.h"
#include "ledger/cluster/queue.h"
#include "ledger/cluster/root.h"

namespace holdfast {

class Membership {
 public:
  struct Options {
    RootLayout layout;
    Nonce root;
    Incarnation self;               // endpoint and key filled in
    bool takeover = false;          // also from a twin that lives
    ControlLink* link = nullptr;    // null: no ZeroMQ at all
    const std::atomic<int>* stop = nullptr;
    // Asks the daemon that said it is this life whether it lives. Null: only its beats tell.
    std::function<bool(const Incarnation&)> answers = {};
  };
  // Claims node.<name>. kInvalidArgument: a daemon of that name lives; the message says where, and `--takeover`.
  static Result<std::unique_ptr<Membership>> Join(FileSystem& fs, const Clock& clock, Options options);

  // Another claim of our name: kFenced, naming who has it now.
  Status CheckMine();
  // Hands `beat` to the link at once and to the directory every two seconds; count, time and identity are filled in.
  void Speak(Beat beat);
  // Hears the link, and the files of those that are not heard there. true: somebody hinted that there is news.
  bool Listen();
  void Hint(const std::string& job);
  Status Leave(const std::string& reason);     // says goodbye in the ledger

  // The latest beat of every node that moved within `silence_ns` before the last Listen, our own first.
  std::vector<const Beat*> Live(uint64_t silence_ns) const;
  // When the last Listen began. Others' silence is measured up to here: what they said since, while the directory held us up, was not heard yet.
  uint64_t listened_ns() const { return listened_ns_; }
  BeatPace Pace() const;                       // for as many nodes as there are
  const Roster& roster() const { return roster_; }
  const Incarnation& self() const { return options_.self; }
  std::vector<std::string> Warnings() const;

 private:
  struct Heard {
    Beat beat;
    uint64_t moved_ns = 0;          // when its count last rose, on our clock
    uint64_t link_ns = 0;           // when it was last heard over ZeroMQ
    uint64_t file_ns = 0;           // when its file was last read
  };
  Membership(FileSystem& fs, const Clock& clock, Options options);
  Status RefuseTwin();
  void Take(const Beat& beat, bool over_link);
  void ReadFiles();
  void Introduce();

  FileSystem& fs_;
  const Clock& clock_;
  Options options_;
  Roster roster_;
  std::unique_ptr<StreamWriter> writer_;
  Beat own_;
  uint64_t born_ns_ = 0, listened_ns_ = 0, written_ns_ = 0, roster_ns_ = 0, checked_ns_ = 0;
  uint64_t count_ = 0, dropped_ = 0, denied_ = 0;
  std::vector<std::string> denied_names_;
  std::map<std::string, Heard> heard_;         // by node name: of its current incarnation
  std::map<std::string, uint64_t> strangers_;  // node names that speak to us with an incarnation that the root does not know: since when
};

}  // namespace holdfast
