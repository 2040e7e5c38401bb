// SPDX-License-Identifier: Apache-2.0
//
// The TOML file of holdfastd --config. Whatever stands in it, the answer is options within their bounds, or what is wrong.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "daemon/holdfastd/options.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const int fd = ::memfd_create("config", 0);
  HOLDFAST_CHECK(fd >= 0 && ::write(fd, data, size) == static_cast<ssize_t>(size));
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const char* const argv[] = {"holdfastd", "--root", "/root", "--config", path.c_str()};
  std::ostringstream out;
  const auto options = ReadDaemonOptions(5, argv, out);
  ::close(fd);
  if (!options.ok()) {
    HOLDFAST_CHECK(options.code() == ErrorCode::kInvalidArgument);
    fuzz::CheckRefusal(options);
  } else if (*options) {
    HOLDFAST_CHECK((*options)->root == "/root" && !(*options)->name.empty());  // the command line goes first
    HOLDFAST_CHECK((*options)->suspect_s >= 1 && (*options)->suspect_s <= 86400);
  }
  return 0;
}
