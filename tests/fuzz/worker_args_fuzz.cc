// SPDX-License-Identifier: Apache-2.0
//
// The argument that a supervisor gives its children.
#include "daemon/node/worker_args.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const auto args = WorkerArgs::Decode(std::string(AsText({data, size})));
  if (!args.ok()) {
    fuzz::CheckRefusal(args);
    return 0;
  }
  HOLDFAST_CHECK(args->size.window > 0 && args->size.threads > 0);
  const auto again = WorkerArgs::Decode(args->Encode());
  HOLDFAST_CHECK(again.ok() && again->Encode() == args->Encode());
  return 0;
}
