#include "registry.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <type_traits>

#include "choices.h"
#include "tiles.h"

namespace pyserve {
namespace {

constexpr size_t kMostProblemClasses = 4096;  // remembered choices; beyond that nothing new is told

Isa find_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These also ask the operating system whether it saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa isa_of(const std::string& name) {
  if (const std::optional<Isa> isa = isa_named(name)) return *isa;
  throw std::invalid_argument("PYSERVE_CPU_ISA: got '" + name + "', expected scalar, avx2, avx512 or avx512_bf16");
}

struct State {
  std::atomic<Isa> isa{find_isa()};
  std::atomic<int32_t> preferred{-1};
  std::atomic<int32_t> preferred_tile{-1};
  std::atomic<int64_t> calls[static_cast<size_t>(Variant::count)] = {};
  std::atomic<int64_t> chains{0};
  std::mutex mutex;  // guards what follows
  std::map<std::string, int64_t> fallbacks;
  std::map<std::vector<int64_t>, NotedChoice> choices;
  std::vector<std::string> new_choices;

  State() {
    const char* cap = std::getenv("PYSERVE_CPU_ISA");
    if (cap != nullptr && *cap != '\0') isa = std::min(find_isa(), isa_of(cap));
  }
};

State& state() {
  static State instance;
  return instance;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f64:
      return "float64";
    default:
      return "float16";
  }
}

template <class Problem>
bool covered(const std::string& name, const Problem& problem) {
#define ROW(op, algorithm, isa, covers)                              \
  if constexpr (std::is_same_v<ProblemOf<Op::op>, Problem>) {        \
    if (name == #op "_" #algorithm "_" #isa) return covers(problem); \
  }
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
#define ROW(op, algorithm, architecture, covers, capability, also)            \
  if constexpr (std::is_same_v<ProblemOf<Op::op>, Problem>) {                 \
    if (name == #op "_" #algorithm "_" #architecture) return covers(problem); \
  }
  PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  for (const VariantInfo& variant : variant_list())
    if (name == variant.name) return false;  // of an operator that has other problems
  throw std::invalid_argument("variant_covers: no variant is named '" + name + "'");
}

// Whether the list has no other variant of the same ISA that takes the problem.
template <class Problem>
bool is_only_candidate(Variant variant, const Problem& problem) {
  const auto& list = variant_list();
  const VariantInfo& chosen = list[static_cast<size_t>(variant)];
  return std::none_of(list.begin(), list.end(), [&](const VariantInfo& other) {
    const bool rival = !std::strcmp(other.op, chosen.op) && !std::strcmp(other.needs, chosen.needs);
    return rival && &other != &chosen && covered(other.name, problem);
  });
}

const char* why_text(Why why, bool only_candidate) {
  switch (why) {
    case Why::asked_for:
      return "asked for";
    case Why::machine_table:
      return "this machine's table";
    case Why::table:
      return "table";
    default:
      return only_candidate ? "only candidate" : "list order";
  }
}

template <class Problem, class Text>
void note(std::vector<int64_t> key, const Problem& problem, Variant variant, Why why, Text text) {
  State& s = state();
  key.push_back(static_cast<int64_t>(variant));
  key.push_back(static_cast<int64_t>(why));
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.choices.size() >= kMostProblemClasses || s.choices.count(key)) return;
  const NotedChoice told{variant, text(), why_text(why, is_only_candidate(variant, problem))};
  s.new_choices.push_back(std::string(variant_list()[static_cast<size_t>(variant)].name) + " for " + told.problem +
                          " (" + told.why + ")");
  s.choices.emplace(std::move(key), told);
}

}  // namespace

const std::vector<VariantInfo>& variant_list() {
  static const std::vector<VariantInfo> list = {
#define ROW(op, algorithm, isa, covers) {#op "_" #algorithm "_" #isa, #op, #algorithm, #isa, false, 0},
      PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
#define ROW(op, algorithm, architecture, covers, capability, also) \
  {#op "_" #algorithm "_" #architecture, #op, #algorithm, "cuda", true, capability},
          PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  };
  return list;
}

std::optional<Isa> isa_named(const std::string& name) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
    if (name == isa_name(isa)) return isa;
  return std::nullopt;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

Isa isa_found() {
  static const Isa found = find_isa();
  return found;
}

Isa isa_in_use() { return state().isa; }

void set_isa(const std::string& name) {
  const Isa isa = isa_of(name);
  if (isa > isa_found())
    throw std::invalid_argument("PYSERVE_CPU_ISA: got '" + name + "', this machine has " + isa_name(isa_found()));
  state().isa = isa;
}

void prefer_variant(const std::string& name) {
  int32_t index = -1;
  const auto& list = variant_list();
  for (size_t i = 0; i < list.size(); ++i)
    if (name == list[i].name) index = static_cast<int32_t>(i);
  if (index < 0 && !name.empty()) throw std::invalid_argument("prefer_variant: no variant is named '" + name + "'");
  state().preferred = index;
}

int32_t preferred_variant() { return state().preferred; }

void prefer_tile(const std::string& name) {
  int32_t found = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(TileSize::count); ++i)
    if (name == tile_name(static_cast<TileSize>(i))) found = i;
  if (found < 0 && !name.empty())
    throw std::invalid_argument("prefer_tile: got '" + name + "', expected large, medium, small or narrow");
  state().preferred_tile = found;
}

int32_t preferred_tile() { return state().preferred_tile; }

bool variant_covers(const std::string& name, const Conv2dProblem& problem) { return covered(name, problem); }
bool variant_covers(const std::string& name, const BiasReluProblem& problem) { return covered(name, problem); }

void count_call(Variant variant) {
  state().calls[static_cast<size_t>(variant)].fetch_add(1, std::memory_order_relaxed);
}

void count_fallback(const char* op, const std::string& reason) {
  State& s = state();
  const std::string key = std::string(op) + ": " + reason;
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.fallbacks[key]++ == 0) s.new_choices.push_back("ATen for " + key);
}

int64_t call_count(int32_t variant) { return state().calls[static_cast<size_t>(variant)]; }

void count_chain() { state().chains.fetch_add(1, std::memory_order_relaxed); }
int64_t chain_count() { return state().chains; }

std::map<std::string, int64_t> fallback_counts() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  return state().fallbacks;
}

void reset_counters() {
  State& s = state();
  for (auto& calls : s.calls) calls = 0;
  s.chains = 0;
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.fallbacks.clear();
  s.choices.clear();
}

// The batch size is left out of a problem class: the choice may depend on it, the class is what a layer is.
void note_choice(const Conv2dProblem& p, Variant variant, Why why) {
  note({p.H, p.W, p.C, p.K, p.R, p.S, p.stride_h, p.stride_w, p.pad_h, p.pad_w, p.dilation_h, p.dilation_w, p.groups,
        static_cast<int64_t>(p.dtype), p.pool.size, p.pool.stride, p.pool.pad},
       p, variant, why, [&p] {
         std::ostringstream text;
         text << dtype_name(p.dtype) << " C " << p.C << " K " << p.K << " kernel " << p.R << "×" << p.S << " on " << p.H
              << "×" << p.W << " stride " << p.stride_h << "," << p.stride_w << " padding " << p.pad_h << "," << p.pad_w
              << " dilation " << p.dilation_h << "," << p.dilation_w << " groups " << p.groups;
         if (p.pool.size > 0)
           text << ", max pooling " << p.pool.size << "×" << p.pool.size << " stride " << p.pool.stride << " padding "
                << p.pool.pad;
         return text.str();
       });
}

void note_choice(const BiasReluProblem& p, Variant variant, Why why) {
  note({p.channels, p.inner, static_cast<int64_t>(p.dtype)}, p, variant, why,
       [&p] { return std::string(dtype_name(p.dtype)) + " with " + std::to_string(p.channels) + " channels"; });
}

void note_choice(const BatchNormProblem& p, Variant variant, Why why) {
  note({p.channels, static_cast<int64_t>(p.dtype)}, p, variant, why,
       [&p] { return std::string(dtype_name(p.dtype)) + " with " + std::to_string(p.channels) + " channels"; });
}

std::vector<NotedChoice> noted_choices() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  std::vector<NotedChoice> found;
  for (const auto& [key, choice] : state().choices) found.push_back(choice);
  return found;
}

std::vector<std::string> take_new_choices() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  std::vector<std::string> taken;
  taken.swap(state().new_choices);
  return taken;
}

namespace {

// The first of the list that takes the problem, or the one that was asked for; `isa`: what it needs.
template <Op op>
Choice<op> first_of_list(const ProblemOf<op>& problem, Isa in_use, int32_t preferred, Isa& isa) {
  Choice<op> choice{Variant::count, nullptr, Why::order};
#define ROW(row_op, algorithm, row_isa, covers)                                                      \
  if constexpr (Op::row_op == op) {                                                                  \
    constexpr Variant variant = Variant::row_op##_##algorithm##_##row_isa;                           \
    const bool asked_for = static_cast<int32_t>(variant) == preferred;                               \
    if ((choice.run == nullptr || asked_for) && Isa::row_isa <= in_use && covers(problem)) {         \
      isa = Isa::row_isa;                                                                            \
      choice = {variant, row_op##_##algorithm##_##row_isa, asked_for ? Why::asked_for : Why::order}; \
    }                                                                                                \
  }
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
  return choice;
}

// The kernel of a variant where it runs on this ISA and takes the problem, else null.
template <Op op>
Kernel<op> kernel_for(Variant variant, const ProblemOf<op>& problem, Isa in_use) {
#define ROW(row_op, algorithm, row_isa, covers)                                                      \
  if constexpr (Op::row_op == op) {                                                                  \
    if (variant == Variant::row_op##_##algorithm##_##row_isa)                                        \
      return Isa::row_isa <= in_use && covers(problem) ? row_op##_##algorithm##_##row_isa : nullptr; \
  }
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
  return nullptr;
}

}  // namespace

template <Op op>
Choice<op> choose_cpu(const ProblemOf<op>& problem) {
  const Isa in_use = state().isa;
  Isa isa = Isa::scalar;
  const Choice<op> first = first_of_list<op>(problem, in_use, state().preferred, isa);
  if constexpr (std::is_same_v<ProblemOf<op>, Conv2dProblem>) {
    if (isa == Isa::scalar || first.why == Why::asked_for) return first;
    const MeasuredChoice measured = measured_choice(class_of(isa, op, problem));
    const Why why = measured.of_machine ? Why::machine_table : Why::table;
    if (measured.variant == first.variant) return {first.variant, first.run, why};
    if (const Kernel<op> run = kernel_for<op>(measured.variant, problem, in_use)) return {measured.variant, run, why};
  }
  return first;
}

template <Op op>
Explained explained(const Conv2dProblem& problem) {
  Isa isa = Isa::scalar;
  first_of_list<op>(problem, state().isa, -1, isa);
  const Choice<op> choice = choose_cpu<op>(problem);
  const bool found = choice.variant != Variant::count;
  return {choice.variant, found ? why_text(choice.why, is_only_candidate(choice.variant, problem)) : "",
          class_text(class_of(isa, op, problem))};
}

Explained explain(const std::string& op, const Conv2dProblem& problem) {
  if (op == "conv2d") return explained<Op::conv2d>(problem);
  if (op == "conv2d_dgrad") return explained<Op::conv2d_dgrad>(problem);
  if (op == "conv2d_wgrad") return explained<Op::conv2d_wgrad>(problem);
  throw std::invalid_argument("explain: got '" + op + "', expected conv2d, conv2d_dgrad or conv2d_wgrad");
}

template <Op op>
Kernel<op> kernel_of(Variant variant) {
#define ROW(row_op, algorithm, row_isa, covers)                                              \
  if constexpr (Op::row_op == op) {                                                          \
    if (variant == Variant::row_op##_##algorithm##_##row_isa && Isa::row_isa <= isa_found()) \
      return row_op##_##algorithm##_##row_isa;                                               \
  }
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
  throw std::invalid_argument("kernel_of: variant " + std::to_string(static_cast<int32_t>(variant)) +
                              " is no kernel of this operator that this machine can run");
}

template Kernel<Op::conv2d> kernel_of<Op::conv2d>(Variant);

const Packing* packing_of(Variant variant) {
#define ROW(op, algorithm, isa) \
  if (variant == Variant::op##_##algorithm##_##isa) return &op##_##algorithm##_##isa##_packing;
  PYSERVE_PACKED_VARIANTS(ROW)
#undef ROW
  return nullptr;
}

template Choice<Op::conv2d> choose_cpu<Op::conv2d>(const Conv2dProblem&);
template Choice<Op::conv2d_dgrad> choose_cpu<Op::conv2d_dgrad>(const Conv2dProblem&);
template Choice<Op::conv2d_wgrad> choose_cpu<Op::conv2d_wgrad>(const Conv2dProblem&);
template Choice<Op::bias_relu> choose_cpu<Op::bias_relu>(const BiasReluProblem&);
template Choice<Op::batch_norm_relu> choose_cpu<Op::batch_norm_relu>(const BatchNormProblem&);
template Choice<Op::batch_norm_relu_backward> choose_cpu<Op::batch_norm_relu_backward>(const BatchNormProblem&);
template Choice<Op::max_pool2d> choose_cpu<Op::max_pool2d>(const PoolingProblem&);
template Choice<Op::average_pool2d> choose_cpu<Op::average_pool2d>(const PoolingProblem&);
template Choice<Op::linear> choose_cpu<Op::linear>(const LinearProblem&);
template Choice<Op::bias_relu_backward> choose_cpu<Op::bias_relu_backward>(const BiasReluProblem&);

}  // namespace pyserve
