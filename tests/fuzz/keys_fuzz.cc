// SPDX-License-Identifier: Apache-2.0
//
// Key files. Input: length of the secret file (u8), its text, then the text of the public file. Only a true pair is read as one, and only
// what is a key is allowed.
#include "daemon/transport/keys.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

// On memory, where the system has such a directory: this fuzzer writes two files for every input.
std::string MakeKeysDir() {
  struct stat st {};
  std::string name = ::stat("/dev/shm", &st) == 0 ? "/dev/shm/holdfast-keys-XXXXXX" : "/tmp/holdfast-keys-XXXXXX";
  HOLDFAST_CHECK(::mkdtemp(name.data()) != nullptr);
  return name;
}

struct KeysDir {
  std::string path = MakeKeysDir();
  ~KeysDir() { (void)PosixFileSystem().RemoveTree(path); }
};

void Write(const std::string& path, ByteSpan text) {
  PosixFileSystem fs;
  auto file = fs.Create(path, 0600);
  HOLDFAST_CHECK(file.ok() && (*file)->Append(text).ok() && (*file)->Close().ok());
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  static const KeysDir dir;
  Cursor in({data, size});
  const Bytes secret = fuzz::TakeBytes(&in, fuzz::Take<uint8_t>(&in));
  Write(JoinPath(dir.path, "n1.secret"), secret);
  Write(JoinPath(dir.path, "n1.public"), in.rest());
  const auto allowed = AllowedKeys(dir.path);
  HOLDFAST_CHECK(allowed.ok() && allowed->size() <= 1);
  const auto pair = ReadKeys(dir.path, "n1");
  if (!pair.ok()) {
    fuzz::CheckRefusal(pair);
    return 0;
  }
  HOLDFAST_CHECK(*pair && (*pair)->public_key.size() == 40 && (*pair)->secret_key.size() == 40);
  HOLDFAST_CHECK(allowed->contains((*pair)->public_key));
  return 0;
}
