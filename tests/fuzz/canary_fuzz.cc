// SPDX-License-Identifier: Apache-2.0
//
// Must fail: proves that the alarm rings. Its seed passes; some mutation of it does not.
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  HOLDFAST_CHECK(size == 0 || data[0] == 'a');
  return 0;
}
