// What the tests call: a variant of the list, by name, on the emulated machine.
#include <cstring>

#include "kernels.h"
#include "machine.h"

namespace pyserve::emulator {
namespace {

void* allocate(void*, int64_t size_bytes) { return machine.allocate(size_bytes); }

void run(const std::string& name, const void* problem, const void* args, const Queue& queue) {
#define ROW(op, algorithm, architecture, covers, least, also)                                 \
  if (name == #op "_" #algorithm "_" #architecture)                                           \
    return op##_##algorithm##_##architecture(*static_cast<const ProblemOf<Op::op>*>(problem), \
                                             *static_cast<const ArgsOf<Op::op>*>(args), queue);
  PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  throw std::invalid_argument("no CUDA variant is named '" + name + "'");
}

}  // namespace
}  // namespace pyserve::emulator

// Returns null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* emulate(
    const char* name, const void* problem, const void* args, const pyserve::emulator::Range* ranges,
    int32_t range_count, int32_t ordering, int32_t capability, int32_t multiprocessors, int32_t tile, bool sampled) {
  using namespace pyserve::emulator;
  static std::string message;
  try {
    machine.configure(static_cast<Ordering>(ordering), sampled, {ranges, ranges + range_count});
    run(name, problem, args, {nullptr, capability, multiprocessors, tile, allocate, nullptr});
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// Blocks of all launches of the last run.
extern "C" __attribute__((visibility("default"))) int64_t emulated_blocks() {
  return pyserve::emulator::machine.blocks_run();
}
