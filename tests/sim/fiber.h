// SPDX-License-Identifier: Apache-2.0
//
// Stackful coroutines on one thread, so that production code that blocks (a file-system call, a sleep) can be suspended in the middle of a
// simulated process and others can run meanwhile.
#pragma once

#include <ucontext.h>

#include <functional>

namespace holdfast::sim {

class Fiber {
 public:
  explicit Fiber(std::function<void()> body);
  ~Fiber();                     // finished, or never begun
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void Resume();                // runs it until it yields or ends; also from inside another fiber
  static void Yield();          // back to whoever resumed the current one
  static Fiber* Current();      // null: this thread runs no fiber
  bool finished() const { return finished_; }

 private:
  static void Main(unsigned low, unsigned high);

  std::function<void()> body_;
  void* stack_ = nullptr;
  ucontext_t context_{}, caller_{};
  Fiber* resumer_ = nullptr;    // the fiber that was running when this one was resumed
  bool begun_ = false, finished_ = false;
};

}  // namespace holdfast::sim
