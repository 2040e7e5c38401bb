// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/fiber.h"

#include <sys/mman.h>

#include <utility>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast::sim {
namespace {

constexpr size_t kStackBytes = 512u << 10;
constexpr size_t kSpareMax = 64;

// Stacks are used again: a run makes hundreds of short processes.
std::vector<void*>& Spare() {
  static std::vector<void*> spare;
  return spare;
}

void* NewStack() {
  if (!Spare().empty()) {
    void* stack = Spare().back();
    Spare().pop_back();
    return stack;
  }
  void* stack = ::mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  HOLDFAST_CHECK(stack != MAP_FAILED);
  HOLDFAST_CHECK(::mprotect(stack, 4096, PROT_NONE) == 0);   // an overflow is a crash, not a riddle
  return stack;
}

thread_local Fiber* g_current = nullptr;

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)) {}

Fiber::~Fiber() {
  HOLDFAST_CHECK(finished_ || !begun_);
  if (stack_ == nullptr) return;
  if (Spare().size() < kSpareMax) Spare().push_back(stack_);
  else ::munmap(stack_, kStackBytes);
}

Fiber* Fiber::Current() { return g_current; }

// makecontext passes ints: the pointer comes in two halves.
void Fiber::Main(unsigned low, unsigned high) {
  auto* self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32);
  self->body_();
  self->finished_ = true;
  Yield();
}

void Fiber::Resume() {
  HOLDFAST_CHECK(!finished_);
  if (!begun_) {
    begun_ = true;
    stack_ = NewStack();
    ::getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    ::makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::Main), 2, static_cast<unsigned>(self), static_cast<unsigned>(self >> 32));
  }
  resumer_ = std::exchange(g_current, this);
  ::swapcontext(&caller_, &context_);
}

void Fiber::Yield() {
  Fiber* self = g_current;
  HOLDFAST_CHECK(self != nullptr);
  g_current = self->resumer_;
  ::swapcontext(&self->context_, &self->caller_);
}

}  // namespace holdfast::sim
