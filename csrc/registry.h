// What was found, what was chosen, how often: the ISA, the variant list, the counters. One copy per process, in
// libpyserve_core.so, shared by the CPU and CUDA operators and by pyserve._C.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "variants.h"

namespace pyserve {

struct VariantInfo {
  const char* name;
  const char* op;
  const char* algorithm;
  const char* needs;  // ISA, or "cuda"
  bool is_cuda;
  int32_t least_capability;  // of CUDA rows, × 10
};

const std::vector<VariantInfo>& variant_list();
const char* isa_name(Isa isa);
std::optional<Isa> isa_named(const std::string& name);

Isa isa_found();                        // by cpuid
Isa isa_in_use();                       // capped by PYSERVE_CPU_ISA or set_isa
void set_isa(const std::string& name);  // throws std::invalid_argument for one this machine does not have

// For tests and benchmarks: `name` is taken wherever it covers the problem, ahead of the usual choice; "" undoes it.
void prefer_variant(const std::string& name);
int32_t preferred_variant();  // index into variant_list(), or -1
// Likewise for the tile of the tensor core kernels (tiles.h).
void prefer_tile(const std::string& name);
int32_t preferred_tile();

// Whether a variant takes this problem.
bool variant_covers(const std::string& name, const Conv2dProblem& problem);
bool variant_covers(const std::string& name, const BiasReluProblem& problem);

void count_fallback(const char* op, const std::string& reason);
int64_t call_count(int32_t variant);
void count_chain();
int64_t chain_count();                             // calls of run_chain
std::map<std::string, int64_t> fallback_counts();  // "conv2d: float16 on cpu" → calls
void reset_counters();                             // and forget the choices

// Why a variant was chosen: the first of the list that takes the problem, a row of a table (choices.h), or by
// prefer_variant.
enum class Why : int32_t { order, table, machine_table, asked_for };

struct NotedChoice {
  Variant variant;
  std::string problem, why;
};

// Remembers the choice for a problem class on first sight. take_new_choices() hands over those not yet told.
void note_choice(const Conv2dProblem& problem, Variant variant, Why why = Why::order);
void note_choice(const BiasReluProblem& problem, Variant variant, Why why = Why::order);
void note_choice(const BatchNormProblem& problem, Variant variant, Why why = Why::order);
std::vector<NotedChoice> noted_choices();
std::vector<std::string> take_new_choices();

template <Op op>
using Kernel = void (*)(const ProblemOf<op>&, const ArgsOf<op>&, const Pool&);

// The variant of `op` for this problem on this CPU.
template <Op op>
struct Choice {
  Variant variant;
  Kernel<op> run;
  Why why;
};
template <Op op>
Choice<op> choose_cpu(const ProblemOf<op>& problem);

struct Explained {
  Variant variant;
  std::string why, problem_class;  // the latter as a row of a table has it
};
// What choose_cpu() makes of a problem of conv2d, conv2d_dgrad or conv2d_wgrad.
Explained explain(const std::string& op, const Conv2dProblem& problem);

// The kernel of a variant of `op`; throws std::invalid_argument for one that this machine cannot run.
template <Op op>
Kernel<op> kernel_of(Variant variant);
// How it wants its weights, or null.
const Packing* packing_of(Variant variant);

// Choose, remember, count, run.
template <Op op>
void run_cpu(const ProblemOf<op>& problem, const ArgsOf<op>& args, const Pool& pool) {
  const Choice<op> choice = choose_cpu<op>(problem);
  note_choice(problem, choice.variant, choice.why);
  count_call(choice.variant);
  choice.run(problem, args, pool);
}

}  // namespace pyserve
