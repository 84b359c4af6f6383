// Threads that stay together for all the loops of one call. A loop of an OpenMP pool ends by putting its threads to
// sleep, and waking them takes as long as a small layer where more threads exist than cores, as in a server with
// several predictors: then OpenMP does not let them spin. These spin from the call's first loop to its last, and are
// gone afterwards. Free of torch.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "../parallel.h"

namespace pyserve {

// One thread leads: it does what is not shared, and its loops are divided into as many parts as there are members.
// Every member takes its own part first, so that it meets in the next loop what it has in its caches, and then any
// part that nobody has begun: a member that comes late or is interrupted holds nobody up with work it has not begun.
class Team {
 public:
  explicit Team(int64_t members) : parts_(static_cast<size_t>(members)) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // As Pool's; the leader calls it. The body must not throw, nor begin a loop of its own.
  void run(int64_t n, int64_t grain, Pool::Body body, void* context) {
    const int64_t members = static_cast<int64_t>(parts_.size());
    const int64_t worth = (n + (grain > 1 ? grain : 1) - 1) / (grain > 1 ? grain : 1);
    const int64_t count = worth < members ? worth : members;
    if (count <= 1) {
      if (n > 0) body(context, 0, n);
      return;
    }
    const uint64_t loop = loop_.load(std::memory_order_relaxed) + 1;
    body_.store(body, std::memory_order_relaxed), context_.store(context, std::memory_order_relaxed);
    n_.store(n, std::memory_order_relaxed), count_.store(count, std::memory_order_relaxed);
    left_.store(count, std::memory_order_relaxed);
    for (int64_t i = count; i < members; ++i) parts_[static_cast<size_t>(i)].taken.store(loop);
    loop_.store(loop, std::memory_order_release);
    take_parts(0, loop);
    Pause pause;
    while (left_.load(std::memory_order_acquire) > 0) pause();
  }

  // What the other members do, 1 ≤ member < members, until the leader dismisses them.
  void help(int64_t member) {
    uint64_t done = 0;
    Pause pause;
    while (!dismissed_.load(std::memory_order_acquire)) {
      const uint64_t loop = loop_.load(std::memory_order_acquire);
      if (loop == done) {
        pause();
        continue;
      }
      take_parts(member, loop);
      done = loop, pause = Pause();
    }
  }

  void dismiss() { dismissed_.store(true, std::memory_order_release); }

 private:
  struct alignas(64) Part {
    std::atomic<uint64_t> taken{0};  // the last loop in which a member took it
  };

  // Spins; gives the core away where that takes long, for then the one it waits for may want it.
  class Pause {
   public:
    void operator()() {
      if (++spins_ % 4096 == 0) sched_yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }

   private:
    uint32_t spins_ = 0;
  };

  // A part's step from the loop before to this one can be made only while this loop is under way, so whoever makes it
  // has seen this loop's body and sizes, however late it comes.
  void take_parts(int64_t first, uint64_t loop) {
    const int64_t n = n_.load(std::memory_order_relaxed), count = count_.load(std::memory_order_relaxed);
    const Pool::Body body = body_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t part = (first + i) % count;
      uint64_t before = loop - 1;
      if (!parts_[static_cast<size_t>(part)].taken.compare_exchange_strong(before, loop)) continue;
      body(context, n * part / count, n * (part + 1) / count);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<Part> parts_;
  std::atomic<uint64_t> loop_{0};
  std::atomic<Pool::Body> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> n_{0}, count_{0}, left_{0};
  std::atomic<bool> dismissed_{false};
};

}  // namespace pyserve
