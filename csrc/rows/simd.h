// SIMD vectors of eight numbers, and loops over arrays of numbers in steps of eight. Knows no torch.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// The function is compiled, with everything it calls, for AVX2 and for any x86-64, and the loader picks one.
// Multiply-adds are contracted in neither, so both give the same bits. Sanitizers do not support the loader's choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define A2S_CLONES __attribute__((target_clones("arch=x86-64-v3", "default"), flatten))
#else
#define A2S_CLONES
#endif

// The iterations of the next loop are independent: none reads what another writes.
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

// Eight numbers of type Acc in a SIMD vector. The compiler splits it if the processor's registers are smaller.
template <class Acc>
using Lanes = typename LanesOf<Acc>::type;

// Whether loops take eight numbers at once. Loops over double, which serves to check gradients, take one.
template <class Acc>
constexpr bool kHasLanes = !std::is_same_v<Acc, double>;

// Eight adjacent T in memory, converted to Lanes<Acc> and back. Specialised for types that this loop converts slowly.
template <class T>
struct Octet {
  template <class Acc>
  static void load(const T* from, Lanes<Acc>& values) {
    for (int64_t i = 0; i < kLanes; ++i) values[i] = static_cast<Acc>(from[i]);
  }
  template <class V>
  static void store(T* to, const V& values) {
    for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<T>(values[i]);
  }
};

template <>
struct Octet<uint8_t> {
  // In three steps, each of which is one instruction.
  template <class V>
  static void store(uint8_t* to, const V& values) {
    const auto integers = __builtin_convertvector(values, LanesOf<int32_t>::type);
    const auto halves = __builtin_convertvector(integers, LanesOf<uint16_t>::type);
    const auto bytes = __builtin_convertvector(halves, LanesOf<uint8_t>::type);
    std::memcpy(to, &bytes, sizeof(bytes));
  }
};

// V is a number (Acc) or eight adjacent numbers (Lanes<Acc>). Converts from T.
template <class V, class T>
V load_values(const T* from) {
  if constexpr (std::is_arithmetic_v<V>) {
    return static_cast<V>(*from);
  } else {
    using Acc = std::decay_t<decltype(std::declval<V&>()[0])>;
    V values;
    if constexpr (std::is_same_v<T, Acc>) std::memcpy(&values, from, sizeof(values));
    else Octet<T>::template load<Acc>(from, values);
    return values;
  }
}

template <class Acc>
Lanes<Acc> load_lanes(const Acc* from) {
  return load_values<Lanes<Acc>>(from);
}

// V as in load_values. Converts to T.
template <class T, class V>
void store_values(T* to, const V& values) {
  if constexpr (std::is_arithmetic_v<V>) {
    *to = static_cast<T>(values);
  } else {
    using Acc = std::decay_t<decltype(std::declval<const V&>()[0])>;
    if constexpr (std::is_same_v<T, Acc>) std::memcpy(to, &values, sizeof(values));
    else Octet<T>::store(to, values);
  }
}

// Calls body(i, V{}) for the numbers i < count: with V = Lanes<Acc> for numbers i .. i + 7, of which the last eight may
// overlap those before them, or with V = Acc if there are fewer than eight or Acc has no lanes. The body must not read
// what it writes.
template <class Acc, class Body>
void for_each_value(int64_t count, const Body& body) {
  int64_t i = 0;
  if constexpr (kHasLanes<Acc>) {
    for (; i + kLanes <= count; i += kLanes) body(i, Lanes<Acc>{});
    if (i == count) return;
    if (count > kLanes) return body(count - kLanes, Lanes<Acc>{});
  }
  for (; i < count; ++i) body(i, Acc{});
}

// The same without overlaps: with V = Acc for the numbers after the last eight. The body may read what it writes.
template <class Acc, class Body>
void for_each_value_once(int64_t count, const Body& body) {
  int64_t i = 0;
  if constexpr (kHasLanes<Acc>) {
    for (; i + kLanes <= count; i += kLanes) body(i, Lanes<Acc>{});
  }
  for (; i < count; ++i) body(i, Acc{});
}

// All eight numbers combined to one.
template <class V, class Combine>
auto fold(const V& v, const Combine& combine) {
  return combine(combine(combine(v[0], v[1]), combine(v[2], v[3])), combine(combine(v[4], v[5]), combine(v[6], v[7])));
}

// K sums over i < count. term(i, terms) sets terms[k] to the i-th term of sum k, or to terms i .. i + 7 if terms[k] is
// a Lanes<Acc>. It may be called twice for a term. The order of the additions does not depend on the processor.
template <class Acc, size_t K, class Term>
std::array<Acc, K> sums_of(int64_t count, const Term& term) {
  std::array<Acc, K> sums{};
  if (count < kLanes || !kHasLanes<Acc>) {
    Acc terms[K];
    for (int64_t i = 0; i < count; ++i) {
      term(i, terms);
      for (size_t k = 0; k < K; ++k) sums[k] += terms[k];
    }
    return sums;
  }
  if constexpr (kHasLanes<Acc>) {
    Lanes<Acc> totals[K]{}, terms[K];
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      term(i, terms);
      for (size_t k = 0; k < K; ++k) totals[k] += terms[k];
    }
    if (i < count) {  // the last eight, without those already added
      constexpr Lanes<Acc> lane{0, 1, 2, 3, 4, 5, 6, 7};
      const auto is_new = lane >= static_cast<Acc>(kLanes - (count - i));
      term(count - kLanes, terms);
      for (size_t k = 0; k < K; ++k) totals[k] += is_new ? terms[k] : Lanes<Acc>{};
    }
    for (size_t k = 0; k < K; ++k) {
      sums[k] = fold(totals[k], [](Acc a, Acc b) { return a + b; });
    }
  }
  return sums;
}

// out[i] = start[i] + the sum over t < terms of weight * row[i], for i < count. term(t) returns {row, weight}; a null
// `start` is 0. Sums are kept in registers and added in the order of the terms. `out` must not overlap the rows; it may
// be `start` if count is a multiple of eight.
template <class Acc, class Term>
void sum_rows(int64_t terms, const Term& term, int64_t count, const Acc* start, Acc* out) {
  int64_t i = 0;
  if constexpr (kHasLanes<Acc>) {
    const auto sum_vectors = [&](int64_t first, auto vectors) {
      Lanes<Acc> sum[vectors];
      for (int v = 0; v < vectors; ++v) sum[v] = start ? load_lanes(start + first + v * kLanes) : Lanes<Acc>{};
      for (int64_t t = 0; t < terms; ++t) {
        const auto [row, weight] = term(t);
        for (int v = 0; v < vectors; ++v) sum[v] += weight * load_values<Lanes<Acc>>(row + first + v * kLanes);
      }
      for (int v = 0; v < vectors; ++v) store_values(out + first + v * kLanes, sum[v]);
    };
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) sum_vectors(i, std::integral_constant<int, 4>{});
    const int64_t rest = (count - i) / kLanes;
    if (rest == 3) sum_vectors(i, std::integral_constant<int, 3>{});
    else if (rest == 2) sum_vectors(i, std::integral_constant<int, 2>{});
    else if (rest == 1) sum_vectors(i, std::integral_constant<int, 1>{});
    i += rest * kLanes;
    if (i == count) return;
    if (count > kLanes) return sum_vectors(count - kLanes, std::integral_constant<int, 1>{});
  }
  for (; i < count; ++i) {
    Acc sum = start ? start[i] : Acc(0);
    for (int64_t t = 0; t < terms; ++t) {
      const auto [row, weight] = term(t);
      sum += weight * static_cast<Acc>(row[i]);
    }
    out[i] = sum;
  }
}

}  // namespace a2s
