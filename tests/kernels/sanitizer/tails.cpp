// Runs every CPU variant of the convolutions and their neighbours on tensors that end where their memory does: behind
// the last element lies a page that nobody may touch, or, in a second run, before the first. That also catches masked
// and vector accesses, which the address sanitizer does not see; where it is there (`scripts/sanitize`), it watches the
// other end. Reads the operator tests' cases, one a line: N C H W K R S, strides, paddings, dilations, groups. Knows
// no torch. With the argument "short" the input of conv2d is an element shorter than it should be: to see that
// it is found.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(address, size)
#define __asan_unpoison_memory_region(address, size)
#endif
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "../../../csrc/pixels.h"
#include "../../../csrc/registry.h"

namespace pyserve {
namespace {

constexpr int64_t kPage = 4096;

bool guard_end = true;  // else the beginning

// Memory beside a page without access.
class Guarded {
 public:
  explicit Guarded(int64_t size_bytes, int64_t alignment = 1) {
    const int64_t size = (size_bytes + kPage - 1 + alignment) / kPage * kPage;
    mapped_bytes_ = size + 2 * kPage;
    void* address = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) std::abort();
    mapped_ = static_cast<char*>(address);
    char *begin = mapped_ + kPage, *end = begin + size;
    mprotect(begin, size, PROT_READ | PROT_WRITE);
    data_ = guard_end ? end - (size_bytes + alignment - 1) / alignment * alignment : begin;
    std::memset(begin, 0xff, size);  // NaN
    __asan_poison_memory_region(begin, data_ - begin);
    __asan_poison_memory_region(data_ + size_bytes, end - data_ - size_bytes);
  }
  Guarded(Guarded&& other) noexcept : mapped_(other.mapped_), data_(other.data_), mapped_bytes_(other.mapped_bytes_) {
    other.mapped_ = nullptr;
  }
  ~Guarded() {
    if (mapped_ == nullptr) return;
    __asan_unpoison_memory_region(mapped_, mapped_bytes_);
    munmap(mapped_, mapped_bytes_);
  }
  char* data() const { return data_; }

 private:
  char* mapped_;
  char* data_;
  int64_t mapped_bytes_;
};

int64_t element_size(DType dtype) { return dtype == DType::bf16 ? 2 : dtype == DType::f64 ? 8 : 4; }

// A tensor of small values, or of NaN where it is to be written.
class Values {
 public:
  Values(int64_t numel, DType dtype, bool random = true)
      : numel_(numel), dtype_(dtype), memory_(numel * element_size(dtype)) {
    for (int64_t i = 0; random && i < numel; ++i) set(i, static_cast<float>(std::rand() % 15 - 7) / 4);
  }
  void* data() const { return memory_.data(); }
  // Whether every element was written: none is NaN any more.
  bool written() const {
    for (int64_t i = 0; i < numel_; ++i)
      if (std::isnan(get(i))) return false;
    return true;
  }

 private:
  void set(int64_t i, float value) {
    char* at = memory_.data() + i * element_size(dtype_);
    const double wide = value;
    const char* narrow = reinterpret_cast<const char*>(&value);
    if (dtype_ == DType::f64)
      std::memcpy(at, &wide, 8);
    else
      std::memcpy(at, dtype_ == DType::bf16 ? narrow + 2 : narrow, element_size(dtype_));  // exact in bfloat16 too
  }
  double get(int64_t i) const {
    const char* at = memory_.data() + i * element_size(dtype_);
    double wide = 0;
    float value = 0;
    if (dtype_ == DType::f64)
      std::memcpy(&wide, at, 8);
    else
      std::memcpy(reinterpret_cast<char*>(&value) + (dtype_ == DType::bf16 ? 2 : 0), at, element_size(dtype_));
    return dtype_ == DType::f64 ? wide : value;
  }

  int64_t numel_;
  DType dtype_;
  Guarded memory_;
};

std::vector<Guarded> scratch;

// As many threads as Pool promises, one after the other, in the order that shows most: the last range first.
void run_in_two(void*, int64_t n, int64_t grain, Pool::Body body, void* context) {
  const int64_t half = n > grain ? n / 2 : n;
  if (half < n) body(context, half, n);
  if (half > 0) body(context, 0, half);
}

void* allocate(void*, int64_t size_bytes) {
  scratch.emplace_back(size_bytes > 0 ? size_bytes : 1, 64);
  return scratch.back().data();
}

constexpr Pool kPool{run_in_two, allocate, nullptr, 2};

int64_t runs = 0;
bool failed = false;
int64_t missing = 0;  // elements of x
std::string under_way;

void tell_fault(int) {
  static const char text[] = ": touches memory beside its tensors\n";
  if (write(STDERR_FILENO, under_way.data(), under_way.size()) < 0 || write(STDERR_FILENO, text, sizeof text - 1) < 0)
    _exit(3);
  _exit(2);
}

template <Op op>
void run(const VariantInfo& variant, const ProblemOf<op>& problem, const ArgsOf<op>& args, const std::string& text) {
  under_way = variant.name + (" of " + text);
  set_isa(variant.needs);
  prefer_variant(variant.name);
  const Choice<op> choice = choose_cpu<op>(problem);
  if (choice.run == nullptr || variant.name != std::string(variant_list()[static_cast<size_t>(choice.variant)].name)) {
    std::printf("%s was not chosen\n", variant.name);
    failed = true;
    return;
  }
  choice.run(problem, args, kPool);
  scratch.clear();
  ++runs;
}

void check(const char* name, const std::string& what, const Values& y) {
  if (y.written()) return;
  std::printf("%s leaves outputs unwritten: %s\n", name, what.c_str());
  failed = true;
}

void check(const VariantInfo& variant, const std::string& what, const Values& y) { check(variant.name, what, y); }

void conv2d(const VariantInfo& variant, const Conv2dProblem& p, const std::string& text) {
  const Values x(p.N * p.H * p.W * p.C - missing, p.dtype), weight(p.K * p.group_c() * p.R * p.S, p.dtype),
      bias(p.K, p.dtype);
  const int64_t outputs = p.N * p.pooled(p.P) * p.pooled(p.Q) * p.K;
  const Values residual(outputs, p.dtype);
  for (const bool packed : {false, true}) {
    const Packing* packing = packed ? packing_of(static_cast<Variant>(&variant - variant_list().data())) : nullptr;
    if (packed && packing == nullptr) break;
    const Values y(outputs, p.dtype, false);
    const Guarded weights(packed ? 4 * packing->size(p) : 0, 4);
    if (packed) packing->pack(p, weight.data(), reinterpret_cast<float*>(weights.data()), kPool);
    scratch.clear();
    const void* added = p.pool.size ? nullptr : residual.data();
    run<Op::conv2d>(variant, p,
                    {x.data(), weight.data(), bias.data(), added, y.data(),
                     packed ? reinterpret_cast<const float*>(weights.data()) : nullptr},
                    text);
    check(variant, text, y);
  }
}

void conv2d_dgrad(const VariantInfo& variant, const Conv2dProblem& p, const std::string& text) {
  const Values grad(p.N * p.P * p.Q * p.K, p.dtype), weight(p.K * p.group_c() * p.R * p.S, p.dtype);
  const Values dx(p.N * p.H * p.W * p.C, p.dtype, false);
  run<Op::conv2d_dgrad>(variant, p, {grad.data(), weight.data(), nullptr, dx.data()}, text);
  check(variant, text, dx);
}

void conv2d_wgrad(const VariantInfo& variant, const Conv2dProblem& p, const std::string& text) {
  const Values grad(p.N * p.P * p.Q * p.K, p.dtype), x(p.N * p.H * p.W * p.C, p.dtype);
  const Values dw(p.K * p.group_c() * p.R * p.S, p.dtype, false);
  run<Op::conv2d_wgrad>(variant, p, {grad.data(), x.data(), nullptr, dw.data(), nullptr}, text);
  check(variant, text, dw);
}

bool runs_here(const VariantInfo& variant) {
  const auto isa = isa_named(variant.needs);
  return !variant.is_cuda && isa && *isa <= isa_found();
}

void every_convolution(Conv2dProblem p, const std::string& text) {
  for (const VariantInfo& variant : variant_list()) {
    const std::string op = variant.op;
    if (!runs_here(variant) || op.rfind("conv2d", 0) != 0) continue;
    for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
      for (const bool kcrs : {false, true}) {
        p.dtype = dtype, p.kcrs = kcrs, p.pool = {};
        if (!variant_covers(variant.name, p)) continue;
        if (op == "conv2d") conv2d(variant, p, text);
        if (op == "conv2d_dgrad") conv2d_dgrad(variant, p, text);
        if (op == "conv2d_wgrad") conv2d_wgrad(variant, p, text);
        p.pool = {3, 2, 1};
        if (op == "conv2d" && p.P > 1 && p.Q > 1 && variant_covers(variant.name, p)) conv2d(variant, p, text);
      }
    }
  }
}

void elementwise(const VariantInfo& variant, int64_t rows, int64_t channels, DType dtype, const std::string& text) {
  const std::string op = variant.op;
  const int64_t numel = rows * channels;
  const Values x(numel, dtype), other(numel, dtype), small(channels, dtype), y(numel, dtype, false);
  const Values sum(channels, dtype, false);
  const BiasReluProblem bias_problem{rows, channels, 1, dtype, {0, INFINITY}};
  if (op == "bias_relu") {
    run<Op::bias_relu>(variant, bias_problem, {x.data(), small.data(), other.data(), y.data()}, text);
  } else if (op == "bias_relu_backward") {
    run<Op::bias_relu_backward>(variant, bias_problem, {x.data(), other.data(), y.data(), sum.data()}, text);
    check(variant, text, sum);
  } else if (op == "linear") {
    const Values weight(channels * 5, dtype), bias(5, dtype), out(rows * 5, dtype, false);
    run<Op::linear>(variant, {rows, channels, 5, dtype, {0, INFINITY}},
                    {x.data(), weight.data(), bias.data(), out.data()}, text);
    return check(variant, text, out);
  } else {
    return;
  }
  check(variant, text, y);
}

void pooling(const VariantInfo& variant, int64_t size, int64_t channels, DType dtype, const std::string& text) {
  const std::string op = variant.op;
  const Values x(2 * size * size * channels, dtype);
  const int64_t max_size = (size + 2 - 3) / 2 + 1, average_size = 2;
  const int64_t out = op == "max_pool2d" ? max_size : average_size;
  const Values y(2 * out * out * channels, dtype, false);
  if (op == "max_pool2d") {
    run<Op::max_pool2d>(variant, {2, size, size, channels, out, out, 3, 3, 2, 2, 1, 1, dtype}, {x.data(), y.data()},
                        text);
  } else if (op == "average_pool2d") {
    run<Op::average_pool2d>(variant, {2, size, size, channels, out, out, 0, 0, 0, 0, 0, 0, dtype}, {x.data(), y.data()},
                            text);
  } else {
    return;
  }
  check(variant, text, y);
}

void everything_else() {
  for (const VariantInfo& variant : variant_list()) {
    if (!runs_here(variant)) continue;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int64_t channels : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100}) {
        for (const int64_t rows : {1, 2, 5, 13}) {
          const std::string text = std::to_string(rows) + " rows of " + std::to_string(channels);
          elementwise(variant, rows, channels, dtype, text);
          pooling(variant, rows + 1, channels, dtype, text);
        }
      }
    }
  }
}

// Crops in the corner beside the page, [N][3][H][W] and [N][H][W][3]; the largest for both threads.
void pixels() {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool last : {false, true}) {
      for (const int64_t size : {1, 2, 7, 200}) {
        const int64_t N = 3, side = size + 2, area = side * side, offset = guard_end ? 2 : 0;
        const std::string text = "crops of " + std::to_string(size);
        under_way = "normalize_pixels of " + text;
        const PixelsProblem p{N, size, size, 3 * area, last ? 1 : area, last ? 3 * side : side, last ? 3 : 1, dtype};
        const Guarded pictures(N * 3 * area);
        const char* first = pictures.data() + offset * (p.stride_h + p.stride_w);
        const Values table(3 * 256, dtype), y(N * 3 * size * size, dtype, false);
        normalize_pixels(p, {reinterpret_cast<const uint8_t*>(first), table.data(), y.data()}, kPool);
        check("normalize_pixels", text, y);
        ++runs;
      }
    }
  }
}

int main_program() {
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);
  for (const bool end : {true, false}) {
    guard_end = end;
    for (const std::string& line : lines) {
      Conv2dProblem p{};
      std::istringstream fields(line);
      fields >> p.N >> p.C >> p.H >> p.W >> p.K >> p.R >> p.S >> p.stride_h >> p.stride_w >> p.pad_h >> p.pad_w >>
          p.dilation_h >> p.dilation_w >> p.groups;
      if (!fields) return std::printf("no case: %s\n", line.c_str()), 2;
      p.P = conv2d_output_size(p.H, p.R, p.stride_h, p.pad_h, p.dilation_h);
      p.Q = conv2d_output_size(p.W, p.S, p.stride_w, p.pad_w, p.dilation_w);
      p.clamp = {0, INFINITY};
      every_convolution(p, line);
    }
    everything_else();
    pixels();
  }
  std::printf("%ld calls on guarded memory%s\n", static_cast<long>(runs), failed ? ", with failures" : ", all clean");
  return failed || runs == 0;
}

}  // namespace
}  // namespace pyserve

int main(int count, char** words) {
  pyserve::missing = count > 1 && !std::strcmp(words[1], "short");
  std::signal(SIGSEGV, pyserve::tell_fault);
  return pyserve::main_program();
}
