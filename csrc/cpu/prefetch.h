// Bringing memory into the caches while something else is computed. Local to each including file.
#pragma once
#include <cstdint>

namespace pyserve {
namespace {

constexpr int64_t kLine = 64;  // bytes of a cache line

__attribute__((always_inline)) inline void prefetch_read(const char* address) { __builtin_prefetch(address, 0, 3); }
__attribute__((always_inline)) inline void prefetch_far(const char* address) { __builtin_prefetch(address, 0, 2); }
__attribute__((always_inline)) inline void prefetch_write(const char* address) { __builtin_prefetch(address, 1, 2); }

}  // namespace
}  // namespace pyserve
