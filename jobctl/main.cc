// SPDX-License-Identifier: Apache-2.0
//
// jobctl: the command line of Holdfast. Declares every option once; the work is in one file per command.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "jobctl/options.h"

namespace holdfast {
namespace {

constexpr char kExitStatus[] =
    "EXIT STATUS: 0 done; 1 failed; 2 refused before anything was started (usage, bad input);\n"
    "75 stopped but resumable (SIGTERM, SIGINT, fenced, no space): type the same line again.\n";
constexpr char kFsckExitStatus[] =
    "EXIT STATUS (sum of bits): 0 clean; 4 errors found; 8 could not read; 16 usage; 64 committed data lost.\n";

void AddResources(CLI::App* cmd, RunOptions* o, std::string* memory) {
  cmd->add_option("--device", o->device, "auto, cpu, cuda or cuda:N (default auto)");
  cmd->add_option("--threads", o->threads, "threads of each stage (default: all cores)");
  cmd->add_option("--memory", *memory, "memory that the workers may plan with, e.g. 24G (default: what is available)");
  auto* layers = cmd->add_option("--shard-layers", o->shard_layers, "layers of each stage, e.g. 14,14,2")->delimiter(',');
  cmd->add_option("--stages", o->stages, "cut the model into this many stages (default 1)")->excludes(layers);
  cmd->add_flag("--json", o->json, "JSON lines on stdout");
  cmd->add_flag("--quiet", o->quiet, "no progress, only the report");
}

struct Parsed {
  RunOptions run;
  RunOptions resume;
  StatusOptions status;
  FsckOptionsCli fsck;
  VerifyOptionsCli verify;
  std::string memory;
  int Dispatch(const CLI::App& app);
};

int Parsed::Dispatch(const CLI::App& app) {
  const bool resuming = app.got_subcommand("resume");
  RunOptions& r = resuming ? resume : run;
  if (resuming || app.got_subcommand("run")) {
    if (!memory.empty()) {
      const auto bytes = ParseSize(memory);
      if (!bytes.ok()) return Fail(Annotate(bytes.error(), "--memory"), r.json);
      r.memory = *bytes;
    }
    return RunCommand(r);
  }
  if (app.got_subcommand("status")) return StatusCommand(status);
  if (app.got_subcommand("fsck")) return FsckCommand(fsck);
  return VerifyCommand(verify);
}

void DeclareRun(CLI::App* app, Parsed* p) {
  CLI::App* cmd = app->add_subcommand("run", "quantize a model to NVFP4; the same line again resumes or says that it is done");
  cmd->add_option("--source", p->run.source, "Hugging Face model directory (safetensors)")->required();
  cmd->add_option("--calib", p->run.calib, "calibration data: .jsonl (text, messages or input_ids) or .txt")->required();
  cmd->add_option("--out", p->run.out, "output directory; appears when it is whole")->required();
  cmd->add_option("--run-dir", p->run.run_dir, "directory of the ledger (default: OUT.run)");
  cmd->add_option("--samples", p->run.samples, "calibration sequences (default: up to 512, as the file has)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--seq-len", p->run.seq_len, "tokens of one sequence at most (default 512)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--recipe", p->run.recipe, "nvfp4 (default), nvfp4-mlp-only, nvfp4-w4a16");
  cmd->add_option("--max-shard-size", p->run.max_shard_size, "largest output file (default 5G)");
  AddResources(cmd, &p->run, &p->memory);
  cmd->footer(std::string("EXAMPLE: jobctl run --source Mistral-Large --calib prose.jsonl --out Mistral-Large-NVFP4\n") + kExitStatus);
}

void DeclareOthers(CLI::App* app, Parsed* p) {
  CLI::App* resume = app->add_subcommand("resume", "continue the job of a run directory");
  resume->add_option("DIR", p->resume.run_dir, "run directory")->required();
  AddResources(resume, &p->resume, &p->memory);
  resume->footer(std::string("EXAMPLE: jobctl resume Mistral-Large-NVFP4.run\n") + kExitStatus);
  p->resume.resume = true;

  CLI::App* status = app->add_subcommand("status", "what a run has done, from its ledger alone");
  status->add_option("DIR", p->status.dir, "run directory")->required();
  status->add_flag("--json", p->status.json, "one JSON document (schema: docs/status-json.md)");
  status->add_flag("--follow", p->status.follow, "redraw until the job is done");
  status->footer("EXAMPLE: jobctl status Mistral-Large-NVFP4.run --follow\nEXIT STATUS: 0 read; 1 failed; 2 no such run.\n");

  CLI::App* fsck = app->add_subcommand("fsck", "check the invariants of a run directory; changes nothing");
  fsck->add_option("DIR", p->fsck.dir, "run directory")->required();
  fsck->add_flag("--deep", p->fsck.deep, "read and check every chunk, source and output file too");
  fsck->add_flag("--json", p->fsck.json, "findings as one JSON document");
  fsck->footer(std::string("EXAMPLE: jobctl fsck Mistral-Large-NVFP4.run --deep\n") + kFsckExitStatus);

  CLI::App* verify = app->add_subcommand("verify", "judge a finished output directory, alone or against its source");
  verify->add_option("OUT", p->verify.out, "output directory")->required();
  verify->add_option("--source", p->verify.source, "model it was made from: quantize again and compare bytes");
  verify->add_option("--threads", p->verify.threads, "threads (default: all cores)");
  verify->add_flag("--json", p->verify.json, "findings as one JSON document");
  verify->footer("EXAMPLE: jobctl verify Mistral-Large-NVFP4 --source Mistral-Large\nEXIT STATUS: 0 sound; 1 findings; 2 cannot be read.\n");
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  using namespace holdfast;
  Parsed parsed;
  CLI::App app{"Holdfast: quantize language models to NVFP4 and never lose work"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("jobctl ") + HOLDFAST_VERSION);
  app.footer(kExitStatus);
  DeclareRun(&app, &parsed);
  DeclareOthers(&app, &parsed);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int rc = app.exit(e, std::cout, std::cerr);
    const bool fsck = argc > 1 && std::string(argv[1]) == "fsck";
    return rc == 0 ? 0 : fsck ? 16 : kExitUsage;
  }
  return parsed.Dispatch(app);
}
