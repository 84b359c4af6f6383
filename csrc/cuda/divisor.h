// Division by a number that is known at launch: a multiplication and a shift (Granlund and Montgomery, "Division by
// invariant integers using multiplication", 1994).
#pragma once
#include "device.h"

namespace pyserve {

struct Divisor {
  int64_t value = 1;
  uint32_t multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) : value(d) {
    if (d == 0) value = d = 1;          // of a product without taps: nothing is divided
    if (d >= int64_t{1} << 31) return;  // what is less than 2³¹ is then divided the long way, too
    while ((int64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - static_cast<uint64_t>(d)) << 32) / d + 1);
  }
};

// For 0 ≤ a < 2³¹ and divisors below that.
PYSERVE_DEVICE int32_t quotient(int32_t a, const Divisor& d) {
  const uint32_t n = static_cast<uint32_t>(a);
  return static_cast<int32_t>((device::multiply_high(n, d.multiplier) + n) >> d.shift);
}

// For every a ≥ 0. Sizes are 64-bit and nearly always small.
PYSERVE_DEVICE int64_t quotient(int64_t a, const Divisor& d) {
  if (((a | d.value) >> 31) == 0) return quotient(static_cast<int32_t>(a), d);
  return a / d.value;
}

}  // namespace pyserve
