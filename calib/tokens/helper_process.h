// SPDX-License-Identifier: Apache-2.0
//
// Runs the tokenizer helper: one child process, a request on its standard input, an answer on its standard output.
// The child dies with the thread that started it (PR_SET_PDEATHSIG), sees no signal mask of ours and no file of ours.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

struct ProcessOutput {
  std::string out;        // all of standard output
  std::string err;        // the last 16 KiB of standard error
  int exit_code = -1;     // or -1
  int signal = 0;         // that ended it, or 0
};

// Starts argv[0] (searched in PATH when it has no slash), writes `input`, reads until both outputs are closed, waits.
// kNotFound: there is no such program. kResourceExhausted: no process or more than `max_output` bytes of output. kStopped: `stop` turned true; it was killed.
Result<ProcessOutput> RunProcess(const std::vector<std::string>& argv, std::string_view input, size_t max_output,
                                 const std::atomic<bool>* stop = nullptr);

// $HOLDFAST_PYTHON, or "python3".
std::string DefaultPython();
// holdfast-tokenize in the directory of the running binary.
Result<std::string> DefaultHelper();

}  // namespace holdfast
