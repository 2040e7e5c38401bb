// SPDX-License-Identifier: Apache-2.0
//
// holdfastd's options: every one may stand on the command line, in a TOML file (--config), or in the environment where noted.
#pragma once

#include <iosfwd>
#include <optional>

#include "daemon/holdfastd/node_daemon.h"

namespace holdfast {

// nullopt: it was a question (--help, --version), and `out` has the answer. kInvalidArgument: what is wrong, and with which option; no
// file, however broken, does worse.
Result<std::optional<DaemonOptions>> ReadDaemonOptions(int argc, const char* const* argv, std::ostream& out);

}  // namespace holdfast
