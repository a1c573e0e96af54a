// Marks for the CPU's hot loops.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// A function that loops over a row is compiled, with everything it calls, for AVX2 and for any x86-64; which one runs is
// settled when the library is loaded. Multiply-adds are contracted in neither, so both give the same bits. Sanitizers
// cannot instrument the choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define A2S_CLONES __attribute__((target_clones("arch=x86-64-v3", "default"), flatten)) static
#else
#define A2S_CLONES static
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
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

template <class Acc>
Lanes<Acc> load_lanes(const Acc* from) {
  Lanes<Acc> lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

template <class Acc>
void store_lanes(Acc* to, const Lanes<Acc>& lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

// Eight values of another type, converted.
template <class Acc, class T>
Lanes<Acc> load_lanes_as(const T* from) {
  if constexpr (std::is_same_v<T, Acc>) return load_lanes(from);
  Acc converted[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) converted[i] = static_cast<Acc>(from[i]);
  return load_lanes(converted);
}

// sum over i < count of term(i), where lanes_term(i) gives terms i .. i + 7. The order does not depend on the processor.
template <class Acc, class LanesTerm, class Term>
Acc sum_of(int64_t count, const LanesTerm& lanes_term, const Term& term) {
  Acc sum = 0;
  if (count < kLanes) {
    for (int64_t i = 0; i < count; ++i) sum += term(i);
    return sum;
  }
  Lanes<Acc> sums{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += lanes_term(i);
  if (i < count) {  // the last eight, without those that were summed
    constexpr Lanes<Acc> place{0, 1, 2, 3, 4, 5, 6, 7};
    const Lanes<Acc> rest = lanes_term(count - kLanes);
    sums += place >= static_cast<Acc>(kLanes - (count - i)) ? rest : Lanes<Acc>{};
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace a2s
