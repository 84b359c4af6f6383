// Runs a CUDA kernel's source on a CPU, block by block: every thread of a block is a fiber that runs until it has to
// wait, the lanes of a warp meet where an instruction needs all of them.
//
// It is as unkind as the programming model allows. Shared memory starts as NaN. Threads run in ascending or in
// descending order, as far as they can before the next one starts, so that a missing barrier shows. Asynchronous copies
// arrive at once, or their target is clobbered at once and they arrive when they are waited for, not sooner. Every
// access is checked: bounds, alignment, races in shared memory, reads of global memory that the same launch writes, two
// stores to one place, barriers that not all threads reach, copies that nobody waits for. What it cannot show: speed,
// registers, memory ordering beyond barriers, and whether the real instructions do what the emulated ones do.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace pyserve::emulator {

constexpr int32_t kWarp = 32;
constexpr int32_t kMostShared = 99 << 10;  // bytes a block may have on every architecture that we name

enum class Ordering : int32_t { early, late };

// A kernel broke a rule; the message says which, where.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Global memory that a kernel may touch.
struct Range {
  unsigned char* begin;
  int64_t size_bytes;
  bool writable;
};

class Machine {
 public:
  // `sampled`: of each launch the first and the last block alone, for what would take too long.
  void configure(Ordering ordering, bool sampled, std::vector<Range> ranges);
  void run(int64_t blocks, int32_t threads, int32_t shared_bytes, const std::function<void()>& kernel);
  void* allocate(int64_t size_bytes);  // global memory, poisoned, until the next configure()

  int32_t thread() const { return current_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return blocks_; }
  int64_t blocks_run() const { return blocks_run_; }  // since the last configure()
  unsigned char* shared() { return shared_; }

  void global_read(const void* from, size_t size, size_t alignment);
  void global_write(void* to, size_t size, size_t alignment);
  void shared_access(const void* at, size_t size, size_t alignment, bool write);

  void block_barrier();
  void warp_barrier();
  // Waits for all lanes of the warp to come here with the same `apply`, which is then called once with what each
  // brings.
  using Operands = void* [kWarp];
  void collective(const char* name, void* operand, void (*apply)(Operands& operands));

  // `filled` of the `size` bytes come from global memory, zeros follow.
  void copy_async(void* to, const void* from, int32_t size, int32_t filled);
  void copy_commit();
  void copy_wait(size_t most_pending);

  [[noreturn]] void violate(const std::string& what);

 private:
  enum class Status { ready, at_barrier, at_collective, done };
  struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int32_t size, filled;
  };
  struct Thread {
    std::unique_ptr<unsigned char[]> stack;
    std::jmp_buf point;
    bool begun = false;
    Status status = Status::ready;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
  };
  struct Warp {
    uint32_t epoch = 0;
    int32_t arrived = 0;
    const char* name = nullptr;
    Operands operands;
  };
  // The last accesses to two bytes of shared memory.
  struct Trace {
    int32_t writer = -1, reader = -1;
    uint32_t write_block = 0, write_warp = 0, read_block = 0, read_warp = 0;
    bool several_lanes = false, several_warps = false;  // read it since
  };
  struct GlobalRange : Range {
    bool read = false, written = false;
    std::vector<bool> stored;  // two bytes each
  };

  static void enter();
  void run_block();
  void resume(int32_t thread);
  void pause();
  void wait_as(Status status);
  void release(Status from, int32_t first, int32_t last);
  void deliver(const Copy& copy);
  GlobalRange& range_of(const void* at, size_t size, size_t alignment, const char* what);
  bool conflicts(int32_t other, uint32_t block_epoch, uint32_t warp_epoch) const;
  std::string stuck() const;

  Ordering ordering_ = Ordering::early;
  bool sampled_ = false;
  std::vector<GlobalRange> ranges_;
  std::vector<std::unique_ptr<unsigned char[]>> scratch_;
  std::vector<unsigned char> arena_;
  unsigned char* shared_ = nullptr;
  int32_t shared_bytes_ = 0;
  std::vector<Trace> traces_;
  std::vector<Thread> fibers_;
  std::vector<Warp> warps_;
  std::jmp_buf home_;
  const std::function<void()>* kernel_ = nullptr;
  int32_t threads_ = 0, current_ = 0, waiting_ = 0;
  int64_t block_ = 0, blocks_ = 0, blocks_run_ = 0;
  uint32_t epoch_ = 0;
  bool released_ = false;
  std::string violation_;
};

inline Machine machine;

}  // namespace pyserve::emulator
