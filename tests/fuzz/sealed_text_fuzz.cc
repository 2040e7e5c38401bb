// SPDX-License-Identifier: Apache-2.0
//
// ROOT and FORMAT. Input: the text, as it is and with a checksum line that fits.
#include "ledger/format/sealed_text.h"

#include <cstdio>

#include "ledger/base/sim_file_system.h"
#include "ledger/cluster/root.h"
#include "ledger/format/layout.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr const char* kRoot = "holdfast root directory";

void Try(const std::string& text) {
  SimFileSystem fs;
  const RootLayout root("/root");
  fuzz::PutFile(fs, root.RootFile(), AsBytes(text));
  fuzz::PutFile(fs, RunLayout("/run").FormatFile(), AsBytes(text));
  const auto info = ReadRoot(fs, root);
  if (!info.ok()) fuzz::CheckRefusal(info);
  const bool readable = CheckFormat(fs, RunLayout("/run")).ok(), writable = CheckFormatForWriting(fs, RunLayout("/run")).ok();
  HOLDFAST_CHECK(readable || !writable);
  HOLDFAST_CHECK(!info.ok() || !readable);  // one file is not both
  const auto sealed = ParseSealedText(kRoot, text, "ROOT");
  if (!sealed.ok()) return;
  const auto again = ParseSealedText(kRoot, RenderSealedText(kRoot, *sealed), "ROOT");
  HOLDFAST_CHECK(again.ok() && again->number == sealed->number && again->incompat == sealed->incompat && again->ro_compat == sealed->ro_compat &&
                 again->compat == sealed->compat && again->more == sealed->more);
}

std::string WithChecksum(std::string body) {
  if (const size_t end = body.rfind("crc32c "); end != std::string::npos) body.resize(end);
  char line[32];
  std::snprintf(line, sizeof line, "crc32c %08x\n", Crc32c(AsBytes(body)));
  return body + line;
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const std::string text(AsText({data, size}));
  Try(text);
  Try(WithChecksum(text));
  return 0;
}
