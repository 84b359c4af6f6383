// Which of the CPU variants that take a convolution is the fastest, as measured: one row for a class of problems. The
// rows are cpu/choices.inc, and before these the ones of a table that this machine's tuner has written, where one was
// loaded. Where no row is of a problem's class, the order of the variant list decides (variants.h).
//
// A class depends on the problem alone: neither on the number of threads, which must not change a result, nor on what
// ran before.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "variants.h"

namespace pyserve {

enum class Grouping : int32_t { dense, grouped, depthwise };

// What decides which variant is the fastest. Sizes fall into one class from a power of two to the next.
struct ProblemClass {
  Isa isa;  // of the variant that the list takes: the others of that ISA and of lesser ones are its rivals
  Op op;
  DType dtype;
  int64_t R, S, stride_h, stride_w;
  Grouping grouping;
  int64_t C, K, positions;  // positions of the output, of all images
};

ProblemClass class_of(Isa isa, Op op, const Conv2dProblem& problem);
// Its fields as a row of a table has them, without the variant.
std::string class_text(const ProblemClass& c);

struct MeasuredChoice {
  Variant variant;  // Variant::count: no row
  bool of_machine;  // from the table that was loaded
};
// The row of the class, among several numbers of positions the one of the nearest.
MeasuredChoice measured_choice(const ProblemClass& c);

// A row as a table file has it: "avx512, conv2d, f32, 3, 3, 1, 1, dense, 64, 64, 2048, winograd_avx512".
// Replaces the table of this machine; throws std::invalid_argument with a sentence, and then changes nothing.
void load_choices(const std::vector<std::string>& rows);
// How often it was replaced, for those who remember choices.
int64_t choices_generation();

}  // namespace pyserve
