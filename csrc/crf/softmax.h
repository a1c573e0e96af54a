// Softmax of a row, eight channels at a time.
#pragma once

#include <limits>

#include "rows.h"

namespace a2s::crf {

typedef int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(int32_t))));

// e^x for x <= 0, within 2e-7 of it relatively, and 0 below e^-20 as in the authors' fast_exp: x = n ln 2 + r, and a
// Taylor polynomial in r, |r| <= ln 2 / 2.
A2S_INLINE Lanes exp_of_negative(Lanes x) {
  const Lanes round = Lanes{} + 0x1.8p23f;  // added to a small float, it leaves no bits for a fraction
  const Lanes n = (x * 1.44269504f + round) - round;
  const Lanes r = (x - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f;  // ln 2 in two parts, of which n * the first is exact
  Lanes e = r * (1.f / 5040) + 1.f / 720;
  e = e * r + 1.f / 120;
  e = e * r + 1.f / 24;
  e = e * r + 1.f / 6;
  e = e * r + 1.f / 2;
  e = e * r + 1.f;
  e = e * r + 1.f;
  const IntLanes power_of_2 = (__builtin_convertvector(n, IntLanes) + 127) << 23;  // the bits of the float 2^n
  return x < -20.f ? Lanes{} : e * (Lanes)power_of_2;
}

// Lane l holds what lane l ^ distance held.
template <int distance>
A2S_INLINE Lanes exchanged(Lanes x) {
  return Lanes{x[0 ^ distance], x[1 ^ distance], x[2 ^ distance], x[3 ^ distance],
               x[4 ^ distance], x[5 ^ distance], x[6 ^ distance], x[7 ^ distance]};
}

A2S_INLINE Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

constexpr float kPadding = -std::numeric_limits<float>::max();

// row[c] becomes e^row[c] over the sum of all; a channel of kPadding becomes 0.
A2S_INLINE void softmax(Lanes* row, int width) {
  Lanes largest = row[0];
  for (int v = 1; v < width; ++v) largest = larger(largest, row[v]);
  largest = larger(largest, exchanged<4>(largest));
  largest = larger(largest, exchanged<2>(largest));
  largest = larger(largest, exchanged<1>(largest));
  Lanes sum{};
  for (int v = 0; v < width; ++v) sum += row[v] = exp_of_negative(row[v] - largest);
  sum += exchanged<4>(sum);
  sum += exchanged<2>(sum);
  sum += exchanged<1>(sum);
  const Lanes scale = 1.f / sum;
  for (int v = 0; v < width; ++v) row[v] *= scale;
}

}  // namespace a2s::crf
