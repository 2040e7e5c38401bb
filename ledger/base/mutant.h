// SPDX-License-Identifier: Apache-2.0
//
// Places where the simulator breaks a rule on purpose, to prove that its checkers notice: HOLDFAST_MUTANT("skip-taken-slot"). Constant false
// in every build but that of holdfast-sim-mutants (tests/sim), which compiles these sources once more with HOLDFAST_MUTANTS defined.
#pragma once

#ifdef HOLDFAST_MUTANTS
namespace holdfast {
bool MutantIs(const char* name);   // tests/sim/mutants.cc
}
#define HOLDFAST_MUTANT(name) ::holdfast::MutantIs(name)
#else
#define HOLDFAST_MUTANT(name) false
#endif
