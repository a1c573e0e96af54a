// Every pass is written once, with vectors of as many lanes as the machine has.
#include "rows.h"

#include <type_traits>
#include <utility>

#define A2S_INLINE __attribute__((always_inline))

namespace a2s::crf {
namespace {

template <class T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <int lanes>
using Floats = typename VectorOf<float, lanes>::type;

template <int lanes>
A2S_INLINE inline Floats<lanes>* vectors(float* row) {
  return reinterpret_cast<Floats<lanes>*>(row);
}
template <int lanes>
A2S_INLINE inline const Floats<lanes>* vectors(const float* row) {
  return reinterpret_cast<const Floats<lanes>*>(row);
}

// Calls pass(lanes), where lanes is a constant, in code for the present machine. The pass must be A2S_INLINE.
template <class Pass>
void run_anywhere(const Pass& pass) {
  pass(std::integral_constant<int, 4>{});
}
#if defined(__x86_64__)
template <class Pass>
__attribute__((target("avx2,fma"))) void run_avx2(const Pass& pass) {
  pass(std::integral_constant<int, 8>{});
}
template <class Pass>
void run(const Pass& pass) {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  avx2 ? run_avx2(pass) : run_anywhere(pass);
}
#else
template <class Pass>
void run(const Pass& pass) {
  run_anywhere(pass);
}
#endif

// sum[c] += shares[0].weight * rows[shares[0].row][c] + ... for `channels` channels c; the sums stay in registers.
template <int lanes, int channels>
A2S_INLINE inline void add_part(const Rows& rows, int first, const Share* shares, int64_t count, float* sum) {
  constexpr int width = channels / lanes;
  auto* const out = vectors<lanes>(sum + first);
  Floats<lanes> part[width];
#pragma GCC unroll 8
  for (int v = 0; v < width; ++v) part[v] = out[v];
  for (int64_t k = 0; k < count; ++k) {
    const auto* row = vectors<lanes>(rows[shares[k].row] + first);
#pragma GCC unroll 8
    for (int v = 0; v < width; ++v) part[v] += shares[k].weight * row[v];
  }
#pragma GCC unroll 8
  for (int v = 0; v < width; ++v) out[v] = part[v];
}

template <int lanes>
A2S_INLINE inline void add(const Rows& rows, const Share* shares, int64_t count, float* sum) {
  int first = 0;
  for (; rows.width() - first > 32; first += 32) add_part<lanes, 32>(rows, first, shares, count, sum);
  switch (rows.width() - first) {
    case 8: return add_part<lanes, 8>(rows, first, shares, count, sum);
    case 16: return add_part<lanes, 16>(rows, first, shares, count, sum);
    case 24: return add_part<lanes, 24>(rows, first, shares, count, sum);
    default: return add_part<lanes, 32>(rows, first, shares, count, sum);
  }
}

// e^x for x <= 0, within 2e-7 of it relatively; 0 below e^-20. x = n ln 2 + r, and a Taylor polynomial in r,
// |r| <= ln 2 / 2.
template <int lanes>
A2S_INLINE inline Floats<lanes> exp_of_negative(Floats<lanes> x) {
  using Vector = Floats<lanes>;
  using Integers = typename VectorOf<int32_t, lanes>::type;
  x = x < -20.f ? Vector{} - 21.f : x;  // -inf is no multiple of ln 2
  const Vector round = Vector{} + 0x1.8p23f;  // added to a small float, it leaves no bits for a fraction
  const Vector n = (x * 1.44269504f + round) - round;
  const Vector r = (x - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f;  // ln 2 in two parts, of which n * the first is exact
  Vector e = r * (1.f / 5040) + 1.f / 720;
  e = e * r + 1.f / 120;
  e = e * r + 1.f / 24;
  e = e * r + 1.f / 6;
  e = e * r + 1.f / 2;
  e = e * r + 1.f;
  e = e * r + 1.f;
  const Integers power_of_2 = (__builtin_convertvector(n, Integers) + 127) << 23;  // the bits of the float 2^n
  return x < -20.f ? Vector{} : e * (Vector)power_of_2;
}

// Lane l holds what lane l ^ distance held.
template <int distance, int... l>
A2S_INLINE inline Floats<sizeof...(l)> exchanged(Floats<sizeof...(l)> x, std::integer_sequence<int, l...>) {
  return Floats<sizeof...(l)>{x[l ^ distance]...};
}

// Every lane of x combined with every other.
template <int lanes, int distance = lanes / 2, class Combine>
A2S_INLINE inline void fold(Floats<lanes>& x, const Combine& combine) {
  if constexpr (distance > 0) {
    combine(x, exchanged<distance>(x, std::make_integer_sequence<int, lanes>{}));
    fold<lanes, distance / 2>(x, combine);
  }
}

template <int lanes>
A2S_INLINE inline void softmax(Floats<lanes>* row, int width) {
  using Vector = Floats<lanes>;
  const auto keep_larger = [](Vector& a, Vector b) A2S_INLINE { a = a > b ? a : b; };
  const auto accumulate = [](Vector& a, Vector b) A2S_INLINE { a += b; };
  Vector largest = row[0];
  for (int v = 1; v < width; ++v) keep_larger(largest, row[v]);
  fold<lanes>(largest, keep_larger);
  Vector sum{};
  for (int v = 0; v < width; ++v) sum += row[v] = exp_of_negative<lanes>(row[v] - largest);
  fold<lanes>(sum, accumulate);
  const Vector scale = 1.f / sum;
  for (int v = 0; v < width; ++v) row[v] *= scale;
}

}  // namespace

void splat(const Rows& rows, const Share* shares, const int64_t* share_begin, Rows& sums, int64_t begin, int64_t end) {
  run([&](auto lanes) A2S_INLINE {
    for (int64_t i = begin; i < end; ++i) {
      auto* const sum = vectors<lanes>(sums[i]);
      for (int v = 0; v < sums.width() / lanes; ++v) sum[v] = Floats<lanes>{};
      add<lanes>(rows, shares + share_begin[i], share_begin[i + 1] - share_begin[i], sums[i]);
    }
  });
}

void blur(const Rows& rows, const Neighbours* neighbours, Rows& blurred, int64_t begin, int64_t end) {
  run([&](auto lanes) A2S_INLINE {
    for (int64_t i = begin; i < end; ++i) {
      const auto* const row = vectors<lanes>(rows[i]);
      const auto* const before = vectors<lanes>(rows[neighbours[i].before]);
      const auto* const after = vectors<lanes>(rows[neighbours[i].after]);
      auto* const out = vectors<lanes>(blurred[i]);
      for (int v = 0; v < rows.width() / lanes; ++v) out[v] = row[v] + 0.5f * (before[v] + after[v]);
    }
  });
}

void update(const Rows& unary, const Slice* slices, int count, Rows& q, int64_t begin, int64_t end) {
  run([&](auto lanes) A2S_INLINE {
    const int width = q.width() / lanes;
    for (int64_t i = begin; i < end; ++i) {
      const auto* const scores = vectors<lanes>(unary[i]);
      auto* const row = vectors<lanes>(q[i]);
      for (int v = 0; v < width; ++v) row[v] = scores[v];
      for (const Slice* slice = slices; slice < slices + count; ++slice) {
        add<lanes>(*slice->rows, slice->shares + i * slice->per_row, slice->per_row, q[i]);
      }
      softmax<lanes>(row, width);
    }
  });
}

}  // namespace a2s::crf
