// What the CPU's hot loops are made of.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "tensor.h"

// A function that loops over a row is compiled, with everything it calls, for AVX2 and for any x86-64; which one runs is
// settled when the library is loaded. Multiply-adds are contracted in neither, so both give the same bits. Sanitizers
// cannot instrument the choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define A2S_CLONES __attribute__((target_clones("arch=x86-64-v3", "default"), flatten)) static
// Also for AVX-512, for the loops that were measured to gain from it.
#define A2S_WIDE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten)) static
#else
#define A2S_CLONES static
#define A2S_WIDE_CLONES static
#endif

// The iterations of the loop that follows are independent: what it writes is nothing that it reads.
#if defined(__clang__)
#define A2S_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define A2S_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace a2s {

constexpr int64_t kLanes = 8;

template <class Acc>
struct LanesOf {
  typedef Acc type __attribute__((vector_size(kLanes * sizeof(Acc))));
};

// Eight values that are worked on at once.
template <class Acc>
using Lanes = typename LanesOf<Acc>::type;

// Eight values of bfloat16, which are the upper halves of float's, and back to the nearest one as torch rounds.
inline Lanes<float> lanes_of(const BFloat16* from) {
  LanesOf<uint16_t>::type upper;
  std::memcpy(&upper, from, sizeof(upper));
  const auto bits = __builtin_convertvector(upper, LanesOf<uint32_t>::type) << 16;
  Lanes<float> values;
  std::memcpy(&values, &bits, sizeof(values));
  return values;
}

inline void store_rounded(BFloat16* to, const Lanes<float>& values) {
  LanesOf<uint32_t>::type bits;
  std::memcpy(&bits, &values, sizeof(bits));
  bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  bits = values == values ? bits : bits * 0 + 0x7fc0;
  const auto upper = __builtin_convertvector(bits, LanesOf<uint16_t>::type);
  std::memcpy(to, &upper, sizeof(upper));
}

// Eight values to bytes, step by step: the compiler has no instruction for all of it.
template <class V>
void store_bytes(uint8_t* to, const V& values) {
  const auto integers = __builtin_convertvector(values, LanesOf<int32_t>::type);
  const auto halves = __builtin_convertvector(integers, LanesOf<uint16_t>::type);
  const auto bytes = __builtin_convertvector(halves, LanesOf<uint8_t>::type);
  std::memcpy(to, &bytes, sizeof(bytes));
}

// One value (V = Acc) or eight neighbours (V = Lanes<Acc>), converted to Acc.
template <class V, class T>
V load_values(const T* from) {
  if constexpr (std::is_arithmetic_v<V>) {
    return static_cast<V>(*from);
  } else {
    using Acc = std::decay_t<decltype(std::declval<V&>()[0])>;
    V values;
    if constexpr (std::is_same_v<T, Acc>) std::memcpy(&values, from, sizeof(values));
    else if constexpr (std::is_same_v<T, BFloat16>) values = lanes_of(from);
    else for (int64_t i = 0; i < kLanes; ++i) values[i] = static_cast<Acc>(from[i]);
    return values;
  }
}

template <class Acc>
Lanes<Acc> load_lanes(const Acc* from) {
  return load_values<Lanes<Acc>>(from);
}

// Converts them to T.
template <class T, class V>
void store_values(T* to, const V& values) {
  if constexpr (std::is_arithmetic_v<V>) {
    *to = static_cast<T>(values);
  } else {
    using Acc = std::decay_t<decltype(std::declval<const V&>()[0])>;
    if constexpr (std::is_same_v<T, Acc>) std::memcpy(to, &values, sizeof(values));
    else if constexpr (std::is_same_v<T, BFloat16>) store_rounded(to, values);
    else if constexpr (std::is_same_v<T, uint8_t>) store_bytes(to, values);
    else for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<T>(values[i]);
  }
}

// Calls each(i, V{}) for values i < count: eight at a time, the last eight overlapping those before them, or one by one
// where there are fewer. `each` must read nothing that it writes.
template <class Acc, class Each>
void for_each_value(int64_t count, const Each& each) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) each(i, Lanes<Acc>{});
  if (i == count) return;
  if (count > kLanes) return each(count - kLanes, Lanes<Acc>{});
  for (; i < count; ++i) each(i, Acc{});
}

// For each k the sum over i < count of the terms[k] that term(i, terms) fills in for value i, or for values i .. i + 7.
// The order does not depend on the processor. Some values may be visited twice.
template <class Acc, size_t K, class Term>
std::array<Acc, K> sums_of(int64_t count, const Term& term) {
  std::array<Acc, K> sums{};
  if (count < kLanes) {
    Acc terms[K];
    for (int64_t i = 0; i < count; ++i) {
      term(i, terms);
      for (size_t k = 0; k < K; ++k) sums[k] += terms[k];
    }
    return sums;
  }
  Lanes<Acc> totals[K]{}, terms[K];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    term(i, terms);
    for (size_t k = 0; k < K; ++k) totals[k] += terms[k];
  }
  if (i < count) {  // the last eight, without those that were summed
    constexpr Lanes<Acc> place{0, 1, 2, 3, 4, 5, 6, 7};
    const auto left = place >= static_cast<Acc>(kLanes - (count - i));
    term(count - kLanes, terms);
    for (size_t k = 0; k < K; ++k) totals[k] += left ? terms[k] : Lanes<Acc>{};
  }
  for (size_t k = 0; k < K; ++k) {
    const Lanes<Acc>& t = totals[k];
    sums[k] = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
  }
  return sums;
}

}  // namespace a2s
