// SPDX-License-Identifier: Apache-2.0
//
// jobctl: the command line of Holdfast. Declares every option once; the work is in one file per command.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "fsck/fsck.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"

namespace holdfast {
namespace {

constexpr char kExitStatus[] =
    "EXIT STATUS: 0 done; 1 failed; 2 refused before anything was started (usage, bad input);\n"
    "75 stopped but resumable (SIGTERM, SIGINT, fenced, no space): type the same line again.\n";
constexpr char kFsckExitStatus[] =
    "EXIT STATUS (sum of bits): 0 clean; 1 errors corrected; 2 corrected and work is open again (jobctl resume);\n"
    "4 errors left; 8 something could not be read or done; 16 usage; 32 interrupted; 64 committed data lost.\n";

constexpr char kLayoutHelp[] = "how the output is written: modelopt (default) or compressed-tensors";

void AddJob(CLI::App* cmd, RunOptions* o) {
  cmd->add_option("--source", o->source, "Hugging Face model directory (safetensors)")->required();
  cmd->add_option("--calib", o->calib, "calibration data: .jsonl (text, messages or input_ids) or .txt")->required();
  cmd->add_option("--run-dir", o->run_dir, "directory of the ledger (default: OUT.run)");
  cmd->add_option("--samples", o->samples, "calibration sequences (default: up to 512, as the file has)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--skip-samples", o->skip_samples, "leave out at most so many samples that end workers or are not finite (default 0: fail)")->check(CLI::Range(0u, 1u << 20));
  cmd->add_option("--seq-len", o->seq_len, "tokens of one sequence at most (default 512)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--recipe", o->recipe, "nvfp4 (default), nvfp4-mlp-only, nvfp4-w4a16");
  cmd->add_option("--layout", o->layout, kLayoutHelp);
  cmd->add_option("--max-shard-size", o->max_shard_size, "largest output file (default 5G)");
}

CLI::Option* AddHow(CLI::App* cmd, RunOptions* o, std::string* memory) {
  cmd->add_option("--device", o->device, kDeviceHelp);
  cmd->add_option("--threads", o->threads, "threads of each stage (default: all cores, shared by the devices)");
  cmd->add_option("--memory", *memory, "memory that the workers may plan with, e.g. 24G; of each device that has its own (default: what is available)");
  auto* layers = cmd->add_option("--shard-layers", o->shard_layers, "layers of each stage, e.g. 14,14,2")->delimiter(',');
  cmd->add_option("--stages", o->stages, "cut the model into this many stages (default: one for each device)")->excludes(layers);
  return layers;
}

void AddResources(CLI::App* cmd, RunOptions* o, std::string* memory) {
  AddHow(cmd, o, memory);
  cmd->add_flag("--json", o->json, "JSON lines on stdout");
  cmd->add_flag("--quiet", o->quiet, "no progress, only the report");
}

struct Parsed {
  std::string root;               // --root before the command, or HOLDFAST_ROOT
  std::string command_root;       // --root behind it
  bool root_said = false;         // on this very line
  RunOptions run;
  RunOptions resume;
  PlanOptions plan;
  StatusOptions status;
  FsckOptionsCli fsck;
  GcOptionsCli gc;
  VerifyOptionsCli verify;
  ExportOptionsCli export_again;
  SubmitOptions submit;
  NodesOptions nodes;
  JobOptions cancel;
  DrainOptions drain;
  LogsOptions logs;
  KeygenOptions keygen;
  std::string memory, fsck_rate;
  int Dispatch(const CLI::App& app);

 private:
  std::optional<int> TakeMemory(RunOptions* options) const;
  int Run(RunOptions* options);
  int Plan(const CLI::App& cmd);
  int Resume(const CLI::App& cmd);
  int Status();
  int Fsck();
  int Gc();
  std::optional<int> ClusterCommand(const CLI::App& app);
  bool MeansJob(const std::string& argument) const;
};

std::optional<int> Parsed::TakeMemory(RunOptions* r) const {
  if (memory.empty()) return std::nullopt;
  const auto bytes = ParseSize(memory);
  if (!bytes.ok()) return Fail(Annotate(bytes.error(), "--memory"), r->json);
  r->memory = *bytes;
  return std::nullopt;
}

int Parsed::Run(RunOptions* r) {
  if (const auto refused = TakeMemory(r)) return *refused;
  return RunCommand(*r);
}

// For the nodes of a root only where --root was said: a root in the environment must not turn the plan of a run into another one.
int Parsed::Plan(const CLI::App& cmd) {
  if (const auto refused = TakeMemory(&plan.run)) return *refused;
  if (!root_said) {
    if (!plan.on.empty()) return Fail(InvalidArgument("--on names nodes of a root: give --root as well"), plan.run.json);
    return PlanCommand(plan);
  }
  plan.root = root;
  for (const char* option : {"--device", "--threads", "--memory", "--stages", "--run-dir", "--no-probe"}) {
    if (cmd.count(option) == 0) continue;
    return Fail(InvalidArgument(std::string(option) + ": how a job of a root is worked on is its nodes' business; leave it out, or --root"), plan.run.json);
  }
  return PlanCommand(plan);
}

// A word behind `status` and `resume` is a job of the root if there is a root, unless it is a path, or a run directory lies there and the
// root was not said with this very command.
bool Parsed::MeansJob(const std::string& argument) const {
  if (root.empty() || argument.find('/') != std::string::npos) return false;
  PosixFileSystem fs;
  return root_said || !fs.Stat(RunLayout(AbsolutePath(argument)).FormatFile()).ok();
}

int Parsed::Resume(const CLI::App& cmd) {
  if (!MeansJob(resume.run_dir)) return Run(&resume);
  for (const char* option : {"--device", "--threads", "--memory", "--shard-layers", "--stages", "--quiet"}) {
    if (cmd.count(option) == 0) continue;
    return Fail(InvalidArgument(std::string(option) + ": how a job of a root is worked on is its nodes' business; `jobctl resume` takes it with a run directory only"), resume.json);
  }
  return ResumeJobCommand({.root = root, .job = resume.run_dir, .json = resume.json});
}

int Parsed::Status() {
  if (!status.dir.empty() && !MeansJob(status.dir)) return StatusCommand(status);
  return RootStatusCommand({.root = root, .job = status.dir, .json = status.json, .follow = status.follow});
}

int Parsed::Fsck() {
  if (fsck.salvage && !fsck.repair && !fsck.dry_run) {
    (void)Fail(InvalidArgument("fsck: --salvage is part of a repair: give it with --repair, or with --dry-run"), fsck.json);
    return kFsckUsage;
  }
  if (!fsck_rate.empty()) {
    const auto rate = ParseSize(fsck_rate);
    if (!rate.ok() || !fsck.deep) {
      (void)Fail(rate.ok() ? InvalidArgument("fsck: --rate is for --deep: give both") : Annotate(rate.error(), "--rate"), fsck.json);
      return kFsckUsage;
    }
    fsck.rate = *rate;
  }
  if (fsck.dir.empty()) fsck.dir = root;
  if (!fsck.dir.empty()) return FsckCommand(fsck);
  (void)Fail(InvalidArgument("fsck: which directory? Give a run directory or a root"), fsck.json);
  return kFsckUsage;
}

int Parsed::Gc() {
  if (gc.dir.empty()) gc.dir = root;
  if (gc.dir.empty()) return Fail(InvalidArgument("gc: which directory? Give a run directory or a root"), gc.json);
  return GcCommand(gc);
}

std::optional<int> Parsed::ClusterCommand(const CLI::App& app) {
  submit.root = nodes.root = cancel.root = drain.root = logs.root = keygen.root = root;
  if (app.got_subcommand("submit")) return SubmitCommand(submit);
  if (app.got_subcommand("nodes")) return NodesCommand(nodes);
  if (app.got_subcommand("cancel")) return CancelCommand(cancel);
  if (app.got_subcommand("logs")) return LogsCommand(logs);
  if (app.got_subcommand("keygen")) return KeygenCommand(keygen);
  drain.what = app.got_subcommand("drain") ? Drain::kDrain : Drain::kUndrain;
  if (app.got_subcommand("drain") || app.got_subcommand("undrain")) return DrainCommand(drain);
  return std::nullopt;
}

int Parsed::Dispatch(const CLI::App& app) {
  if (!command_root.empty()) root = command_root;
  root_said = !root.empty();
  const char* environment = std::getenv("HOLDFAST_ROOT");
  if (!root_said && environment != nullptr) root = environment;
  if (!root.empty()) root = AbsolutePath(root);
  if (const auto done = ClusterCommand(app)) return *done;
  if (app.got_subcommand("status")) return Status();
  if (app.got_subcommand("resume")) return Resume(*app.get_subcommand("resume"));
  if (app.got_subcommand("fsck")) return Fsck();
  if (app.got_subcommand("gc")) return Gc();
  if (app.got_subcommand("plan")) return Plan(*app.get_subcommand("plan"));
  if (root_said) return Fail(InvalidArgument("--root: this command works on a directory of its own; jobs of a root are begun with `jobctl submit`"), run.json);
  if (app.got_subcommand("run")) return Run(&run);
  if (app.got_subcommand("export")) return ExportCommand(export_again);
  return VerifyCommand(verify);
}

void DeclareRun(CLI::App* app, Parsed* p) {
  CLI::App* cmd = app->add_subcommand("run", "quantize a model to NVFP4; the same line again resumes or says that it is done");
  AddJob(cmd, &p->run);
  cmd->add_option("--out", p->run.out, "output directory; appears when it is whole")->required();
  AddResources(cmd, &p->run, &p->memory);
  cmd->footer(std::string("EXAMPLE: jobctl run --source Mistral-Large --calib prose.jsonl --out Mistral-Large-NVFP4\n") + kExitStatus);
}

constexpr char kClusterExitStatus[] = "EXIT STATUS: 0 done; 1 failed; 2 refused (usage, bad input, no such root, job or node); 75 try again.\n";

CLI::App* AddRoot(CLI::App* cmd, Parsed* p) {
  cmd->add_option("--root", p->command_root, "directory that the nodes share (default: HOLDFAST_ROOT)");
  return cmd;
}

void DeclarePlan(CLI::App* app, Parsed* p) {
  CLI::App* cmd = AddRoot(app->add_subcommand("plan", "what run (or, with --root, submit) would do: stages, memory, bytes, time from a measured layer; starts nothing"), p);
  AddJob(cmd, &p->plan.run);
  cmd->add_option("--out", p->plan.run.out, "output directory, so that space is checked and its disk measured (default: the current directory)");
  CLI::Option* layers = AddHow(cmd, &p->plan.run, &p->memory);
  cmd->add_option("--on", p->plan.on, "with --root: node of each stage")->delimiter(',')->needs(layers);
  cmd->add_flag("--no-probe", p->plan.no_probe, "measure nothing: times only from what was measured before");
  cmd->add_flag("--json", p->plan.run.json, "one JSON document");
  cmd->footer("EXAMPLE: jobctl plan --source Mistral-Large --calib prose.jsonl --out Mistral-Large-NVFP4 --memory 24G\n"
              "EXIT STATUS: 0 planned; 1 failed; 2 refused, as run would (usage, bad input, less memory or space than it needs).\n");
}

void DeclareSubmit(CLI::App* app, Parsed* p) {
  CLI::App* cmd = AddRoot(app->add_subcommand("submit", "put a job into the queue of a root; its daemons work on it"), p);
  SubmitOptions* o = &p->submit;
  cmd->add_option("--source", o->source, "Hugging Face model directory (safetensors), under the same path on every node")->required();
  cmd->add_option("--calib", o->calib, "calibration data: .jsonl (text, messages or input_ids) or .txt")->required();
  cmd->add_option("--out", o->out, "output directory; appears when it is whole")->required();
  cmd->add_option("--name", o->name, "name of the job (default: the last part of --out)");
  auto* layers = cmd->add_option("--shard-layers", o->shard_layers, "layers of each stage, e.g. 41,41,6 (default: by the speed and memory of the nodes)")->delimiter(',');
  cmd->add_option("--on", o->on, "node of each stage, e.g. spark1,spark2,box (default: any that fits)")->delimiter(',')->needs(layers);
  cmd->add_option("--after", o->after, "job that must be done before; may be given several times")->delimiter(',');
  cmd->add_option("--priority", o->priority, "-100 to 100, higher goes first (default 0)")->check(CLI::Range(-100, 100));
  cmd->add_option("--samples", o->samples, "calibration sequences (default: up to 512, as the file has)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--skip-samples", o->skip_samples, "leave out at most so many samples that end workers or are not finite (default 0: fail)")->check(CLI::Range(0u, 1u << 20));
  cmd->add_option("--seq-len", o->seq_len, "tokens of one sequence at most (default 512)")->check(CLI::Range(1u, 1u << 20));
  cmd->add_option("--recipe", o->recipe, "nvfp4 (default), nvfp4-mlp-only, nvfp4-w4a16");
  cmd->add_option("--layout", o->layout, kLayoutHelp);
  cmd->add_option("--max-shard-size", o->max_shard_size, "largest output file (default 5G)");
  cmd->add_flag("--reproducible", o->reproducible, "only nodes of one numerics class work on it");
  cmd->add_option("--notify", o->notify, "command to run at the end or on failure, with the summary on its standard input");
  cmd->add_flag("--json", o->json, "one JSON line instead of the id");
  cmd->add_flag("--quiet", o->quiet, "only the id, no plan");
  cmd->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast submit --source Mistral-Large --calib prose.jsonl --out Mistral-Large-NVFP4 --shard-layers 41,41,6\n") +
              kClusterExitStatus);
}

void DeclareResumeAndStatus(CLI::App* app, Parsed* p) {
  CLI::App* resume = AddRoot(app->add_subcommand("resume", "continue the job of a run directory here, or put a job of a root into its queue again"), p);
  resume->add_option("DIR|JOB", p->resume.run_dir, "run directory; with a root: name or id of a job")->required();
  AddResources(resume, &p->resume, &p->memory);
  resume->footer(std::string("EXAMPLE: jobctl resume Mistral-Large-NVFP4.run\n         jobctl --root /mnt/holdfast resume Mistral-Large-NVFP4\n") + kExitStatus);
  p->resume.resume = true;

  CLI::App* status = AddRoot(app->add_subcommand("status", "what a run or the jobs of a root have done; needs nobody to be running"), p);
  status->add_option("DIR|JOB", p->status.dir, "run directory; with a root: name or id of a job (default: all jobs)");
  status->add_flag("--json", p->status.json, "one JSON document (schema: docs/status-json.md)");
  status->add_flag("--follow", p->status.follow, "show it again when something changed, until the job is done");
  status->footer("EXAMPLE: jobctl status Mistral-Large-NVFP4.run --follow\n         jobctl --root /mnt/holdfast status\n"
                 "EXIT STATUS: 0 read; 1 failed; 2 no such run, root or job.\n");
}

void DeclareCluster(CLI::App* app, Parsed* p) {
  CLI::App* nodes = AddRoot(app->add_subcommand("nodes", "the nodes of a root: alive or silent, memory, speed, tasks, warnings"), p);
  nodes->add_flag("--json", p->nodes.json, "one JSON document (schema: docs/status-json.md)");
  nodes->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast nodes\n") + kClusterExitStatus);

  CLI::App* cancel = AddRoot(app->add_subcommand("cancel", "take a job out of the queue and stop work on it; what is committed stays"), p);
  cancel->add_option("JOB", p->cancel.job, "name or id")->required();
  cancel->add_flag("--json", p->cancel.json, "one JSON line");
  cancel->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast cancel Mistral-Large-NVFP4\n") + kClusterExitStatus);

  for (const char* name : {"drain", "undrain"}) {
    const bool drain = std::string(name) == "drain";
    CLI::App* cmd = AddRoot(app->add_subcommand(name, drain ? "give a node no more work; what it has moves to others" : "let a drained node work again"), p);
    cmd->add_option("NODE", p->drain.node, "name of the node")->required();
    cmd->add_flag("--json", p->drain.json, "one JSON line");
    cmd->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast ") + name + " spark2\n" + kClusterExitStatus);
  }

  CLI::App* logs = AddRoot(app->add_subcommand("logs", "what the nodes wrote down about a job, by time"), p);
  logs->add_option("JOB", p->logs.job, "name or id")->required();
  logs->add_option("--node", p->logs.node, "of this node alone (default: all)");
  logs->add_flag("--follow", p->logs.follow, "go on printing what is added, until interrupted");
  logs->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast logs Mistral-Large-NVFP4 --node spark2\n") + kClusterExitStatus);

  CLI::App* keygen = AddRoot(app->add_subcommand("keygen", "make keys, so that daemons may listen beyond loopback"), p);
  keygen->add_option("NAME", p->keygen.names, "names of nodes (default: this host)");
  keygen->footer(std::string("EXAMPLE: jobctl --root /mnt/holdfast keygen spark1 spark2 box\n") + kClusterExitStatus);
}

void DeclareChecks(CLI::App* app, Parsed* p) {
  CLI::App* fsck = AddRoot(app->add_subcommand("fsck", "check the invariants of a run directory, or of a root with all its jobs; mend them with --repair"), p);
  fsck->add_option("DIR", p->fsck.dir, "run directory or root (default: the root)");
  fsck->add_flag("--deep", p->fsck.deep, "read and check every chunk, source and output file too");
  fsck->add_option("--rate", p->fsck_rate, "with --deep: read no more than this a second, e.g. 200MB");
  fsck->add_option("--reproduce", p->fsck.reproduce, "quantize N random layers once more from the source and compare the bytes")->check(CLI::Range(1u, 1024u));
  auto* repair = fsck->add_flag("--repair", p->fsck.repair, "mend what can be mended: VOID records, tombstones, moves to quarantine/; deletes nothing");
  fsck->add_flag("--dry-run", p->fsck.dry_run, "say what --repair would do, and do nothing");
  fsck->add_flag("--salvage", p->fsck.salvage, "with --repair or --dry-run: records of damaged slots that hold by their own checksums are said again");
  fsck->add_option("--undo", p->fsck.undo, "take back the repair of this id, byte for byte")->excludes(repair);
  fsck->add_flag("--json", p->fsck.json, "findings as one JSON document");
  fsck->footer(std::string("EXAMPLE: jobctl fsck Mistral-Large-NVFP4.run --deep\n         jobctl --root /mnt/holdfast fsck\n") + kFsckExitStatus);

  CLI::App* gc = AddRoot(app->add_subcommand("gc", "remove what finished and cancelled jobs no longer need; says how much"), p);
  gc->add_option("DIR", p->gc.dir, "run directory, or root with all its jobs (default: the root)");
  gc->add_flag("--dry-run", p->gc.dry_run, "say what would be removed, and remove nothing");
  gc->add_option("--quarantine", p->gc.quarantine, "also remove quarantine/ID of a repair, which can not be taken back then; \"all\": every one");
  gc->add_flag("--json", p->gc.json, "one JSON document");
  gc->footer("EXAMPLE: jobctl gc Mistral-Large-NVFP4.run --dry-run\n         jobctl --root /mnt/holdfast gc\n"
             "EXIT STATUS: 0 done, also if there was nothing to remove; 1 something could not be removed; 2 refused (usage, findings of fsck, somebody\n"
             "works there); 75 stopped: type the same line again.\n");

  CLI::App* verify = app->add_subcommand("verify", "judge a finished output directory, alone or against its source");
  verify->add_option("OUT", p->verify.out, "output directory")->required();
  verify->add_option("--source", p->verify.source, "model it was made from: quantize again and compare bytes");
  verify->add_option("--threads", p->verify.threads, "threads (default: all cores)");
  verify->add_flag("--json", p->verify.json, "findings as one JSON document");
  verify->footer("EXAMPLE: jobctl verify Mistral-Large-NVFP4 --source Mistral-Large\nEXIT STATUS: 0 sound; 1 findings; 2 cannot be read.\n");
}

void DeclareExport(CLI::App* app, Parsed* p) {
  CLI::App* again = app->add_subcommand("export", "write the output of a run once more, in either layout, without calibrating again");
  again->add_option("DIR", p->export_again.run_dir, "run directory")->required();
  again->add_option("--layout", p->export_again.layout, "modelopt or compressed-tensors")->required();
  again->add_option("--out", p->export_again.out, "output directory; appears when it is whole")->required();
  again->add_option("--threads", p->export_again.threads, "threads (default: all cores)");
  again->add_flag("--json", p->export_again.json, "JSON lines on stdout");
  again->add_flag("--quiet", p->export_again.quiet, "no progress, only the result");
  again->footer(std::string("EXAMPLE: jobctl export Mistral-Large-NVFP4.run --layout compressed-tensors --out Mistral-Large-CT\n") + kExitStatus);
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
  app.add_option("--root", parsed.root, "directory that the nodes share (default: HOLDFAST_ROOT)");
  DeclareRun(&app, &parsed);
  DeclarePlan(&app, &parsed);
  DeclareResumeAndStatus(&app, &parsed);
  DeclareSubmit(&app, &parsed);
  DeclareCluster(&app, &parsed);
  DeclareChecks(&app, &parsed);
  DeclareExport(&app, &parsed);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int rc = app.exit(e, std::cout, std::cerr);
    return rc == 0 ? 0 : app.got_subcommand("fsck") ? kFsckUsage : kExitUsage;
  }
  return parsed.Dispatch(app);
}
