#include "workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <mutex>
#include <new>

namespace pyserve {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kAlignment = 64;
constexpr int64_t kIdleNs = 10'000'000'000;

struct Arena {
  std::mutex mutex;
  std::vector<WorkspaceBlock> waiting;  // the one returned last is the warmest, and the last
  int64_t held_bytes = 0, borrowed_bytes = 0, most_held_bytes = 0, given_back_bytes = 0;
  std::atomic<bool> poisoned{false};
};

// Never destroyed: threads may still be computing when the process exits.
Arena& arena() {
  static Arena* instance = new Arena;
  return *instance;
}

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

int64_t round_up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

// Whole huge pages at a huge page's boundary: what the mapping has too much at both ends goes back.
WorkspaceBlock map_block(int64_t size) {
  const int64_t mapped = size + kHugePage;
  void* address = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  char *begin = static_cast<char*>(address), *end = begin + mapped;
  char* data = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(begin), kHugePage));
  if (data > begin) munmap(begin, data - begin);
  if (data + size < end) munmap(data + size, end - data - size);
  want_huge_pages(data, size);
  return {data, size, 0};
}

void unmap(Arena& a, std::vector<WorkspaceBlock>::iterator first, std::vector<WorkspaceBlock>::iterator last) {
  for (auto block = first; block != last; ++block) {
    munmap(block->data, block->size_bytes);
    a.held_bytes -= block->size_bytes;
    a.given_back_bytes += block->size_bytes;
  }
  a.waiting.erase(first, last);
}

// The smallest waiting block that is large enough and not wastefully so, the warmest of equals; or a new one.
WorkspaceBlock borrow(int64_t size_bytes) {
  Arena& a = arena();
  const int64_t size = round_up(size_bytes, kHugePage);
  {
    const std::lock_guard<std::mutex> lock(a.mutex);
    auto best = a.waiting.end();
    for (auto block = a.waiting.begin(); block != a.waiting.end(); ++block) {
      const bool fits = block->size_bytes >= size && block->size_bytes <= 2 * size;
      if (fits && (best == a.waiting.end() || block->size_bytes <= best->size_bytes)) best = block;
    }
    a.borrowed_bytes += best != a.waiting.end() ? best->size_bytes : size;
    if (best != a.waiting.end()) {
      const WorkspaceBlock block = *best;
      a.waiting.erase(best);
      return block;
    }
    a.held_bytes += size;
    a.most_held_bytes = std::max(a.most_held_bytes, a.held_bytes);
  }
  try {
    return map_block(size);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(a.mutex);
    a.held_bytes -= size, a.borrowed_bytes -= size;
    throw;
  }
}

void give_back(std::vector<WorkspaceBlock>::iterator first, std::vector<WorkspaceBlock>::iterator last) {
  Arena& a = arena();
  const int64_t now = now_ns();
  const std::lock_guard<std::mutex> lock(a.mutex);
  for (auto block = first; block != last; ++block) {
    block->idle_since_ns = now;
    a.borrowed_bytes -= block->size_bytes;
    a.waiting.push_back(*block);
  }
  // Returned in the order of time: those that wait longest are at the front.
  unmap(a, a.waiting.begin(), std::find_if(a.waiting.begin(), a.waiting.end(), [now](const WorkspaceBlock& block) {
          return now - block.idle_since_ns < kIdleNs;
        }));
}

}  // namespace

void want_huge_pages(void* data, int64_t size_bytes) {
#ifdef MADV_HUGEPAGE
  const auto address = reinterpret_cast<int64_t>(data);
  const int64_t begin = round_up(address, kHugePage), end = (address + size_bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused: then not
#endif
}

void* Workspace::allocate(int64_t size_bytes) {
  const int64_t size = round_up(std::max<int64_t>(size_bytes, 1), kAlignment);
  if (blocks_.empty() || used_bytes_ + size > blocks_.back().size_bytes) {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(borrow(std::max(size, blocks_.empty() ? 0 : 2 * blocks_.back().size_bytes)));
    used_bytes_ = 0;
  }
  char* data = blocks_.back().data + used_bytes_;
  used_bytes_ += size;
  if (arena().poisoned) std::memset(data, 0xff, size);
  return data;
}

void Workspace::reset() {
  if (blocks_.size() > 1) {  // the last is the largest: the others had no room left
    const auto last = blocks_.end() - 1;
    give_back(blocks_.begin(), last);
    blocks_.erase(blocks_.begin(), last);
  }
  used_bytes_ = 0;
}

Workspace::~Workspace() {
  if (!blocks_.empty()) give_back(blocks_.begin(), blocks_.end());
}

WorkspaceUsage workspace_usage() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  return {a.held_bytes, a.borrowed_bytes, a.most_held_bytes, a.given_back_bytes};
}

void release_workspace() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  unmap(a, a.waiting.begin(), a.waiting.end());
}

void poison_workspace(bool wanted) { arena().poisoned = wanted; }

}  // namespace pyserve
