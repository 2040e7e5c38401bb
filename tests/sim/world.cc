// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "ledger/base/checksum.h"

namespace holdfast::sim {
namespace {

Process* g_running = nullptr;   // one thread runs fibers; helper threads of production code see Fiber::Current() == null

}  // namespace

// ---- process ----

Process::Process(World& world, std::string name, uint64_t seed) : world_(world), name_(std::move(name)), seed_(seed), random_(seed) {}

Process* Process::Current() { return Fiber::Current() == nullptr ? nullptr : g_running; }

void Process::Sleep(uint64_t ns) {
  if (dead_) return;
  const uint64_t number = ++sleep_;
  world_.At(world_.now() + ns, [self = shared_from_this(), number] {
    if (self->finished_ || self->sleep_ != number) return;
    if (self->paused_) self->due_ = true;
    else self->Resume();
  });
  Fiber::Yield();
}

void Process::Wake() {
  if (!due_) return;
  due_ = false;
  world_.At(world_.now(), [self = shared_from_this(), number = sleep_] {
    if (!self->finished_ && self->sleep_ == number) self->Resume();
  });
}

void Process::Resume() {
  Process* before = std::exchange(g_running, this);
  fiber_->Resume();
  g_running = before;
  if (!fiber_->finished()) return;
  finished_ = true;
  fiber_.reset();
}

void Process::Kill() {
  if (dead_ || finished_) return;
  dead_ = true;
  paused_ = false;
  ++sleep_;
  if (g_running != this) Resume();
}

// ---- world ----

World::World(uint64_t seed, bool trace) : random_(Mix(seed, 1)), trace_(trace) {}

World::~World() {
  for (const auto& weak : processes_) {
    if (const auto p = weak.lock()) p->Kill();
  }
}

void World::At(uint64_t when, std::function<void()> what) { events_.push({std::max(when, now_), made_++, std::move(what)}); }

std::shared_ptr<Process> World::Spawn(const std::string& name, std::function<void(Process&)> body, std::function<void()> on_end, uint64_t seed) {
  const uint64_t drawn = random_.Next();
  auto p = std::make_shared<Process>(*this, name, seed != 0 ? seed : drawn);
  std::erase_if(processes_, [](const auto& weak) { return weak.expired(); });
  processes_.push_back(p);
  Process* raw = p.get();
  p->fiber_ = std::make_unique<Fiber>([this, raw, body = std::move(body), on_end = std::move(on_end)] {
    if (!raw->dead_) body(*raw);
    At(now_, on_end);
  });
  At(now_, [p] {
    if (!p->finished_) p->Resume();
  });
  return p;
}

bool World::Step() {
  if (events_.empty() || !violation_.empty()) return false;
  auto what = std::move(const_cast<Event&>(events_.top()).what);
  now_ = events_.top().when;
  events_.pop();
  what();
  return true;
}

void World::Violation(const std::string& what) {
  Trace("CHECKER", what);
  if (violation_.empty()) violation_ = "at " + std::to_string((now_ - 1000 * kSecond) / kMs) + " ms: " + what;
}

void World::Trace(const std::string& who, const std::string& what) {
  digest_ = Mix(digest_ ^ now_, Crc32c(AsBytes(what), Crc32c(AsBytes(who))));
  if (!trace_) return;
  const uint64_t us = (now_ - 1000 * kSecond) / 1000;
  std::printf("%6llu.%06llu %-14s %s\n", static_cast<unsigned long long>(us / 1000000), static_cast<unsigned long long>(us % 1000000), who.c_str(), what.c_str());
}

}  // namespace holdfast::sim

// The kernel's random numbers, as far as simulated processes are concerned: what Nonce::Random draws is part of the history.
extern "C" ssize_t getrandom(void* buffer, size_t length, unsigned flags) {
  auto* process = holdfast::sim::Process::Current();
  if (process == nullptr) return ::syscall(SYS_getrandom, buffer, length, flags);
  auto* bytes = static_cast<uint8_t*>(buffer);
  for (size_t i = 0; i < length; ++i) bytes[i] = static_cast<uint8_t>(process->random().Next() >> 32);
  return static_cast<ssize_t>(length);
}
