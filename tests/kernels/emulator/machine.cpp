#include "machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>

namespace pyserve::emulator {
namespace {

constexpr size_t kStack = 64 << 10;
constexpr int64_t kMostTracked = 64 << 20;  // stores to larger ranges are not remembered one by one
constexpr unsigned char kPoison = 0xff;     // NaN in every float type

std::string at_offset(const unsigned char* at, const unsigned char* begin) { return std::to_string(at - begin); }

}  // namespace

void Machine::configure(Ordering ordering, bool sampled, std::vector<Range> ranges) {
  ordering_ = ordering;
  sampled_ = sampled;
  blocks_run_ = 0;
  scratch_.clear();
  ranges_.clear();
  for (const Range& range : ranges) ranges_.push_back({range, false, false, {}});
}

void* Machine::allocate(int64_t size_bytes) {
  constexpr int64_t alignment = 256;
  scratch_.push_back(std::make_unique<unsigned char[]>(static_cast<size_t>(size_bytes + alignment)));
  unsigned char* begin = scratch_.back().get();
  begin += alignment - reinterpret_cast<uintptr_t>(begin) % alignment;
  std::memset(begin, kPoison, static_cast<size_t>(size_bytes));
  ranges_.push_back({{begin, size_bytes, true}, false, false, {}});
  return begin;
}

// ------------------------------------------------------------ fibers

// Contexts are made once and then left and entered by longjmp, which, unlike swapcontext, makes no system call.
void Machine::enter() {
  for (;;) {
    (*machine.kernel_)();
    Thread& thread = machine.fibers_[static_cast<size_t>(machine.current_)];
    if (!thread.open.empty() || !thread.groups.empty()) machine.violate("leaves the kernel with copies under way");
    thread.status = Status::done;
    machine.pause();
  }
}

__attribute__((noinline)) void Machine::pause() {
  if (_setjmp(fibers_[static_cast<size_t>(current_)].point) == 0) _longjmp(home_, 1);
}

__attribute__((noinline)) void Machine::resume(int32_t index) {
  current_ = index;
  Thread& thread = fibers_[static_cast<size_t>(index)];
  if (_setjmp(home_) != 0) return;
  if (thread.begun) _longjmp(thread.point, 1);
  thread.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, &Machine::enter, 0);
  setcontext(&context);
}

void Machine::violate(const std::string& what) {
  violation_ = "thread " + std::to_string(current_) + " of block " + std::to_string(block_) + ": " + what;
  pause();
  std::abort();  // nobody resumes a thread after a violation
}

void Machine::wait_as(Status status) {
  fibers_[static_cast<size_t>(current_)].status = status;
  pause();
}

void Machine::release(Status from, int32_t first, int32_t last) {
  for (int32_t i = first; i < last; ++i) {
    Thread& thread = fibers_[static_cast<size_t>(i)];
    if (thread.status == from) thread.status = Status::ready;
  }
  released_ = true;
}

// ------------------------------------------------------------ launch

void Machine::run(int64_t blocks, int32_t threads, int32_t shared_bytes, const std::function<void()>& kernel) {
  if (threads < kWarp || threads > 1024 || threads % kWarp != 0)
    throw Violation("launch: " + std::to_string(threads) + " threads, expected a multiple of 32 up to 1024");
  if (shared_bytes > kMostShared)
    throw Violation("launch: " + std::to_string(shared_bytes) + " bytes of shared memory");
  blocks_run_ += blocks;
  blocks_ = blocks, threads_ = threads, shared_bytes_ = shared_bytes, kernel_ = &kernel;
  for (GlobalRange& range : ranges_) {
    range.read = range.written = false;
    range.stored.assign(range.size_bytes <= kMostTracked ? static_cast<size_t>(range.size_bytes / 2 + 1) : 0, false);
  }
  while (fibers_.size() < static_cast<size_t>(threads)) {
    fibers_.emplace_back();
    fibers_.back().stack = std::make_unique<unsigned char[]>(kStack);
  }
  for (int64_t i = 0; i < blocks; ++i) {
    if (sampled_ && i != 0 && i != blocks - 1) continue;
    block_ = ordering_ == Ordering::early ? i : blocks - 1 - i;
    run_block();
  }
}

void Machine::run_block() {
  constexpr size_t alignment = 128;
  arena_.assign(static_cast<size_t>(shared_bytes_) + 2 * alignment, kPoison);
  shared_ = arena_.data() + alignment - reinterpret_cast<uintptr_t>(arena_.data()) % alignment;
  traces_.assign(static_cast<size_t>(shared_bytes_) / 2 + 1, {});
  warps_.assign(static_cast<size_t>(threads_ / kWarp), {});
  waiting_ = 0, epoch_ = 1;
  for (int32_t i = 0; i < threads_; ++i) fibers_[static_cast<size_t>(i)].status = Status::ready;
  for (int32_t done = 0; done < threads_;) {
    bool progress = false;
    released_ = false;
    for (int32_t i = 0; i < threads_ && !released_ && violation_.empty(); ++i) {
      const int32_t index = ordering_ == Ordering::early ? i : threads_ - 1 - i;
      if (fibers_[static_cast<size_t>(index)].status != Status::ready) continue;
      resume(index);
      progress = true;
      done += fibers_[static_cast<size_t>(index)].status == Status::done;
    }
    if (!progress) violation_ = "block " + std::to_string(block_) + " is stuck: " + stuck();
    if (violation_.empty()) continue;
    for (Thread& thread : fibers_) thread.begun = false, thread.open.clear(), thread.groups.clear();
    std::string message;
    message.swap(violation_);
    throw Violation(message);
  }
}

std::string Machine::stuck() const {
  int32_t at_barrier = 0, at_collective = 0, done = 0;
  for (int32_t i = 0; i < threads_; ++i) {
    const Status status = fibers_[static_cast<size_t>(i)].status;
    at_barrier += status == Status::at_barrier;
    at_collective += status == Status::at_collective;
    done += status == Status::done;
  }
  return std::to_string(at_barrier) + " threads wait at a barrier of the block, " + std::to_string(at_collective) +
         " for their warp, " + std::to_string(done) + " have left the kernel";
}

// ------------------------------------------------------------ barriers

void Machine::block_barrier() {
  if (++waiting_ == threads_) {
    waiting_ = 0;
    ++epoch_;
    release(Status::at_barrier, 0, threads_);
    fibers_[static_cast<size_t>(current_)].status = Status::ready;
    return pause();  // the order starts anew
  }
  wait_as(Status::at_barrier);
}

void Machine::collective(const char* name, void* operand, void (*apply)(Operands& operands)) {
  Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
  if (warp.arrived == 0) warp.name = name;
  if (std::strcmp(warp.name, name) != 0)
    violate(std::string("comes to ") + name + ", another lane of its warp to " + warp.name);
  warp.operands[current_ % kWarp] = operand;
  if (++warp.arrived < kWarp) return wait_as(Status::at_collective);
  warp.arrived = 0;
  if (apply != nullptr) {
    apply(warp.operands);
  } else {
    ++warp.epoch;  // only a barrier orders the lanes' memory accesses
  }
  const int32_t first = current_ / kWarp * kWarp;
  release(Status::at_collective, first, first + kWarp);
}

void Machine::warp_barrier() { collective("a warp barrier", nullptr, nullptr); }

// ------------------------------------------------------------ memory

Machine::GlobalRange& Machine::range_of(const void* at, size_t size, size_t alignment, const char* what) {
  const auto* begin = static_cast<const unsigned char*>(at);
  for (GlobalRange& range : ranges_)
    if (begin >= range.begin && begin + size <= range.begin + range.size_bytes) {
      if (reinterpret_cast<uintptr_t>(at) % alignment != 0)
        violate(std::string(what) + " global memory at an address that is no multiple of " + std::to_string(alignment));
      return range;
    }
  violate(std::string(what) + " global memory out of bounds");
}

void Machine::global_read(const void* from, size_t size, size_t alignment) {
  GlobalRange& range = range_of(from, size, alignment, "reads");
  if (range.written) violate("reads global memory that the same launch writes");
  range.read = true;
}

void Machine::global_write(void* to, size_t size, size_t alignment) {
  GlobalRange& range = range_of(to, size, alignment, "writes");
  if (!range.writable) violate("writes to an input");
  if (range.read) violate("writes global memory that the same launch reads");
  range.written = true;
  if (range.stored.empty()) return;
  const auto first = static_cast<size_t>(static_cast<unsigned char*>(to) - range.begin) / 2;
  for (size_t i = first; i < first + size / 2; ++i) {
    if (range.stored[i]) violate("stores to a place of global memory that was stored to before");
    range.stored[i] = true;
  }
}

bool Machine::conflicts(int32_t other, uint32_t block_epoch, uint32_t warp_epoch) const {
  if (other < 0 || other == current_ || block_epoch != epoch_) return false;
  return other / kWarp != current_ / kWarp || warp_epoch == warps_[static_cast<size_t>(current_ / kWarp)].epoch;
}

void Machine::shared_access(const void* at, size_t size, size_t alignment, bool write) {
  const auto* begin = static_cast<const unsigned char*>(at);
  if (begin < shared_ || begin + size > shared_ + shared_bytes_) violate("accesses shared memory out of bounds");
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0) violate("accesses shared memory at a misaligned address");
  const uint32_t warp_epoch = warps_[static_cast<size_t>(current_ / kWarp)].epoch;
  const auto first = static_cast<size_t>(begin - shared_) / 2, last = first + (size + 1) / 2;
  for (size_t i = first; i < last; ++i) {
    Trace& trace = traces_[i];
    const auto race = [&](const char* what, int32_t other) {
      violate(std::string(what) + " thread " + std::to_string(other) + ", with no barrier in between (byte " +
              at_offset(shared_ + 2 * i, shared_) + " of shared memory)");
    };
    if (conflicts(trace.writer, trace.write_block, trace.write_warp))
      race(write ? "overwrites shared memory written by" : "reads shared memory written by", trace.writer);
    if (!write) {
      const bool same_block = trace.read_block == epoch_;
      const bool same_warp = same_block && trace.reader / kWarp == current_ / kWarp;
      trace.several_warps = same_block && (trace.several_warps || !same_warp);
      trace.several_lanes =
          same_warp && trace.read_warp == warp_epoch && (trace.several_lanes || trace.reader != current_);
      trace.reader = current_, trace.read_block = epoch_, trace.read_warp = warp_epoch;
      continue;
    }
    const bool others =
        trace.read_block == epoch_ && (trace.several_warps || (trace.several_lanes && trace.read_warp == warp_epoch));
    if (others || conflicts(trace.reader, trace.read_block, trace.read_warp))
      race("overwrites shared memory read by", trace.reader);
    trace.writer = current_, trace.write_block = epoch_, trace.write_warp = warp_epoch;
  }
}

// ------------------------------------------------------------ asynchronous copies

void Machine::deliver(const Copy& copy) {
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.filled));
  std::memset(copy.to + copy.filled, 0, static_cast<size_t>(copy.size - copy.filled));
}

void Machine::copy_async(void* to, const void* from, int32_t size, int32_t filled) {
  const auto bytes = static_cast<size_t>(size);
  shared_access(to, bytes, bytes, true);
  if (filled > 0) global_read(from, static_cast<size_t>(filled), bytes);
  const Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), size, filled};
  if (ordering_ == Ordering::early) {
    deliver(copy);
  } else {
    std::memset(to, kPoison, bytes);
  }
  fibers_[static_cast<size_t>(current_)].open.push_back(copy);
}

void Machine::copy_commit() {
  Thread& thread = fibers_[static_cast<size_t>(current_)];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void Machine::copy_wait(size_t most_pending) {
  Thread& thread = fibers_[static_cast<size_t>(current_)];
  while (thread.groups.size() > most_pending) {
    for (const Copy& copy : thread.groups.front()) {
      shared_access(copy.to, static_cast<size_t>(copy.size), static_cast<size_t>(copy.size), true);
      if (ordering_ == Ordering::late) deliver(copy);
    }
    thread.groups.pop_front();
  }
}

}  // namespace pyserve::emulator
