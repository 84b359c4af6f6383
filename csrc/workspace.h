// Scratch memory that operators borrow for the length of one call: huge pages where there are any, reused from call to
// call (fresh pages cost more than most convolutions), and given back to the system once unused.
#pragma once
#include <cstdint>
#include <vector>

namespace pyserve {

// A piece of the process's workspace; the pieces that nobody has borrowed wait in one list.
struct WorkspaceBlock {
  char* data = nullptr;
  int64_t size_bytes = 0;
  int64_t idle_since_ns = 0;
};

// What one call has borrowed; its destructor returns all of it. Not shared between threads.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();
  // 64-byte aligned; throws std::bad_alloc.
  void* allocate(int64_t size_bytes);
  // What was allocated so far is no longer needed; it stays borrowed, for what comes next.
  void reset();

 private:
  std::vector<WorkspaceBlock> blocks_;
  int64_t used_bytes_ = 0;  // of the last block
};

struct WorkspaceUsage {
  int64_t held_bytes, borrowed_bytes, most_held_bytes, given_back_bytes;  // the latter to the system, so far
};
WorkspaceUsage workspace_usage();
// Gives back what is not borrowed now. By itself every block goes that no call has wanted for some seconds.
void release_workspace();
// Asks for huge pages where memory holds whole ones: fresh pages of the small kind take longer to get than to fill.
void want_huge_pages(void* data, int64_t size_bytes);
// For tests: borrowed memory starts as NaN, so that what a kernel reads without having written it shows.
void poison_workspace(bool wanted);

}  // namespace pyserve
