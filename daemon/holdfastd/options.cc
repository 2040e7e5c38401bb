// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/options.h"

#include <CLI/CLI.hpp>
#include <sstream>
#include <string>

#include "daemon/node/device.h"
#include "daemon/node/process.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

void Declare(CLI::App* app, DaemonOptions* o, std::string* memory) {
  app->add_option("--root", o->root, "directory that the nodes share (also HOLDFAST_ROOT)")->envname("HOLDFAST_ROOT")->required();
  app->add_option("--name", o->name, "this node's name, unique in the root (default: the host's name)");
  app->add_option("--listen", o->listen, "address to listen on, e.g. 10.0.0.2 or 10.0.0.2:7070; off: no ZeroMQ (default 127.0.0.1)");
  app->add_option("--device", o->device, kDeviceHelp);
  app->add_option("--memory", *memory, "memory that this node's workers may plan with, e.g. 24G; of each device that has its own (default: what is available)");
  app->add_option("--threads", o->threads, "threads of each stage (default: all cores, shared by the devices)");
  app->add_option("--suspect", o->suspect_s, "seconds without a sign of life after which a node's stages go to others (default 120)")->check(CLI::Range(1, 86400));
  app->add_flag("--takeover", o->takeover, "take the name from a daemon that has it: that one is fenced");
  app->add_flag("!--no-notify", o->notify, "do not run the commands of `jobctl submit --notify` on this node");
  app->set_config("--config", "", "TOML file with any of these options");
  app->set_version_flag("--version", std::string("holdfastd ") + HOLDFAST_VERSION);
  app->footer("EXAMPLE: holdfastd --root /mnt/nfs/holdfast --name spark1 --listen 10.0.0.2\n"
              "EXIT STATUS: 2 could not begin; 75 stopped (SIGTERM, SIGINT: drained within 30 s) or its name was taken over; 1 failed.\n");
}

// kStopped: it was a question, and is answered. CLI11 throws; nothing of that leaves this function.
Status Parse(CLI::App* app, int argc, const char* const* argv, std::ostream& out) {
  std::ostringstream wrong;
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (app->exit(e, out, wrong) == 0) return Stopped("answered");
  } catch (const std::exception& e) {
    wrong << "options: " << e.what();
  }
  std::string text = wrong.str();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? OkStatus() : Status(InvalidArgument(text));
}

}  // namespace

Result<std::optional<DaemonOptions>> ReadDaemonOptions(int argc, const char* const* argv, std::ostream& out) {
  DaemonOptions o;
  std::string memory;
  CLI::App app{"holdfastd: a node of Holdfast. Works on the jobs of a shared directory; see holdfastd(8)"};
  Declare(&app, &o, &memory);
  const Status parsed = Parse(&app, argc, argv, out);
  if (parsed.code() == ErrorCode::kStopped) return std::optional<DaemonOptions>();
  HOLDFAST_TRY(parsed);
  if (!memory.empty()) {
    const auto bytes = ParseSize(memory);
    if (!bytes.ok()) return Annotate(bytes.error(), "--memory");
    o.memory_bytes = *bytes;
  }
  if (o.name.empty()) o.name = HostName();
  return std::optional<DaemonOptions>(std::move(o));
}

}  // namespace holdfast
