// SPDX-License-Identifier: Apache-2.0
//
// model.safetensors.index.json (the input) beside two small files: whatever it says, what opens is those files' tensors, each once.
#include <set>

#include "export/format/safetensors.h"
#include "ledger/base/sim_file_system.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

Bytes SmallFile(const char* first, const char* second) {
  SafetensorsLayout layout = LayOutSafetensors({{first, DType::kBF16, {2, 2}}, {second, DType::kF32, {1}}});
  layout.header.resize(layout.file_size);
  return layout.header;
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  static const Bytes a = SmallFile("w.a", "w.b"), b = SmallFile("w.c", "w.d");
  SimFileSystem fs;
  fuzz::PutFile(fs, "/m/model-1.safetensors", a);
  fuzz::PutFile(fs, "/m/model-2.safetensors", b);
  fuzz::PutFile(fs, "/outside.safetensors", b);
  fuzz::PutFile(fs, "/m/model.safetensors.index.json", {data, size});
  const auto model = SourceModel::Open(fs, "/m");
  if (!model.ok()) {
    fuzz::CheckRefusal(model);
    return 0;
  }
  std::set<std::string> paths;
  for (const auto& file : (*model)->files()) {
    HOLDFAST_CHECK(DirName(file->path()) == "/m" && paths.insert(file->path()).second);
  }
  for (const auto& [name, place] : (*model)->tensors()) {
    Bytes bytes(place.tensor->bytes);
    HOLDFAST_CHECK(place.file->Find(name) == place.tensor && place.file->Read(*place.tensor, bytes).ok());
  }
  return 0;
}
