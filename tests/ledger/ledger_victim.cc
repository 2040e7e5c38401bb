// SPDX-License-Identifier: Apache-2.0
//
// A process to be killed: ledger_victim RUN_DIR N. Claims stage.00 and appends N slots, printing a line for each that was
// acknowledged. An append that fails is tried once more. HOLDFAST_FAIL says where it dies.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "ledger/log/stream.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

Status Work(const std::string& root, int slots) {
  PosixFileSystem fs;
  const RunLayout layout(root);
  RealClock clock;
  HOLDFAST_TRY(EnsureFormat(fs, layout, NonceOf(1)));
  StreamReader reader(fs, layout, "stage.00", NonceOf(0x77));
  StreamWriter::Options options;
  options.job = NonceOf(0x77);
  options.claim.incarnation = Nonce::Random();
  options.claim.node = "victim";
  HOLDFAST_ASSIGN(const auto writer, StreamWriter::Open(fs, layout, clock, &reader, nullptr, options));
  for (int i = 0; i < slots; ++i) {
    Record note;
    note.key = {RecordClass::kPhase, 0, static_cast<uint32_t>(i), writer->next_seq(), 0};
    note.payload = Bytes(100, static_cast<uint8_t>(i));
    if (!writer->Append({note}).ok()) HOLDFAST_TRY(writer->Append({note}));
    if (::write(1, "ack\n", 4) != 4) return Internal("stdout is closed");
  }
  return OkStatus();
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const holdfast::Status s = holdfast::Work(argv[1], std::atoi(argv[2]));
  if (!s.ok()) std::fprintf(stderr, "ledger_victim: %s\n", s.error().message.c_str());
  return s.ok() ? 0 : 1;
}
