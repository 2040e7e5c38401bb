// SPDX-License-Identifier: Apache-2.0
//
// Everything that a peer can make a daemon or worker decode: messages of both sockets and beats (also those that lie in files).
#include <string>
#include <type_traits>

#include "daemon/wire/beat.h"
#include "daemon/wire/messages.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

template <class M>
Result<M> Decode(ByteSpan bytes) {
  if constexpr (std::is_same_v<M, EdgeMessage> || std::is_same_v<M, EdgeCredit>) return M::Decode(bytes);
  else return M::Decode(AsText(bytes));
}

// What decodes is a value: encoded and decoded again it is the same.
template <class M>
void Check(ByteSpan bytes) {
  const Result<M> message = Decode<M>(bytes);
  if (!message.ok()) return fuzz::CheckRefusal(message);
  const auto encoded = message->Encode();
  const Result<M> again = Decode<M>({reinterpret_cast<const uint8_t*>(encoded.data()), encoded.size()});
  HOLDFAST_CHECK(again.ok() && again->Encode() == encoded);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const ByteSpan bytes(data, size);
  Check<EdgeMessage>(bytes);
  Check<EdgeCredit>(bytes);
  Check<WorkerReport>(bytes);
  Check<Beat>(bytes);
  Check<ControlMessage>(bytes);
  return 0;
}
