// SPDX-License-Identifier: Apache-2.0
//
// The kernels once more, for one instruction set (that of this file's options), under another name.
#define HOLDFAST_KERNELS_ONE_VARIANT
#define kernels HOLDFAST_KERNELS_NAME
#include "calib/runner/kernels.cc"   // NOLINT: on purpose
