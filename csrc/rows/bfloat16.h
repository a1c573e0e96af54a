// Vectors of bfloat16.
#pragma once

#include "../support/tensor.h"
#include "simd.h"

namespace a2s {

// A bfloat16 is the upper half of a float. Stores round to nearest even, as torch does.
template <>
struct Octet<BFloat16> {
  template <class Acc>
  static void load(const BFloat16* from, Lanes<float>& values) {
    LanesOf<uint16_t>::type upper;
    std::memcpy(&upper, from, sizeof(upper));
    const auto bits = __builtin_convertvector(upper, LanesOf<uint32_t>::type) << 16;
    std::memcpy(&values, &bits, sizeof(values));
  }
  static void store(BFloat16* to, const Lanes<float>& values) {
    LanesOf<uint32_t>::type bits;
    std::memcpy(&bits, &values, sizeof(bits));
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    bits = values == values ? bits : bits * 0 + 0x7fc0;
    const auto upper = __builtin_convertvector(bits, LanesOf<uint16_t>::type);
    std::memcpy(to, &upper, sizeof(upper));
  }
};

}  // namespace a2s
