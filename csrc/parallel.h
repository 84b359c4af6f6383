// How a torch-free kernel runs on the caller's thread pool.
#pragma once
#include <cstdint>

namespace pyserve {

struct Pool {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Calls body on ranges that cover [0, n), in several threads; `grain` is the least worth a thread of its own.
  void (*run)(void* owner, int64_t n, int64_t grain, Body body, void* context);
  // Scratch memory, 64-byte aligned, that lives until the operator returns.
  void* (*allocate)(void* owner, int64_t size_bytes);
  void* owner;      // the launcher's
  int64_t threads;  // at most; what a kernel computes must not depend on it

  template <class F>
  __attribute__((always_inline)) void operator()(int64_t n, int64_t grain, F&& f) const {
    run(
        owner, n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
        &f);
  }

  __attribute__((always_inline)) int64_t workers(int64_t n) const { return n < threads ? n : threads; }
  // f(worker, begin, end) once for each of workers(n): for what has scratch memory of its own per thread.
  template <class F>
  __attribute__((always_inline)) void share(int64_t n, F&& f) const {
    const int64_t count = workers(n);
    (*this)(count, 1, [&](int64_t first, int64_t last) {
      for (int64_t worker = first; worker < last; ++worker) f(worker, n * worker / count, n * (worker + 1) / count);
    });
  }
};

}  // namespace pyserve
