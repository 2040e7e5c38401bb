// SPDX-License-Identifier: Apache-2.0
//
// holdfast-sim, for now: one run.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/sim/checkers.h"

using namespace holdfast;
using namespace holdfast::sim;

int main(int argc, char** argv) {
  const bool trace = argc > 1 && std::strcmp(argv[1], "--trace") == 0;
  Cluster c({.seed = 1, .trace = trace, .shape = {.layers = 2, .samples = 3, .cut = {1, 1}}, .nodes = {{.name = "n0"}, {.name = "n1"}}});
  SlotWatch watch(c);
  c.Submit();
  for (auto& [name, node] : c.nodes) node->PowerOn();
  while (!c.Done() && c.world.now() < 2000 * kSecond && c.world.Step()) {
  }
  std::printf("done %d at %llu ms, events %llu, violation %s\n", c.Done(), (unsigned long long)((c.world.now() - 1000 * kSecond) / kMs), (unsigned long long)c.world.events(), c.world.violation().c_str());
  std::printf("%s|%s|%s|%s\n", CheckLog(c).c_str(), CheckFold(c).c_str(), CheckOutput(c).c_str(), CheckFsck(c, true).c_str());
}
