// Interp on a GPU, by threads that go down the rows of the result: the source rows around a result are held in
// registers, resized along x, until a result lies between others.
#pragma once

#include "../support/pack.h"
#include "../support/tile.h"
#include "interp.h"

namespace a2s {

// Axis::tap in 32 bits.
__device__ inline Tap tap_of(const Axis& axis, int o) {
  const float position = exact_mul(axis.ratio, static_cast<float>(o));
  const int low = static_cast<int>(position);
  return {low, min(low + 1, static_cast<int>(axis.in) - 1), exact_sub(position, static_cast<float>(low))};
}

// The two rows of a map that a row of results lies between, and their weights.
template <class Acc>
struct alignas(sizeof(Acc) == 4 ? 16 : 8) SourceRows {
  int64_t low, high;  // bytes from row 0
  Acc above, below;
  int step;  // from the low row of the result before: 0, 1 or more
  int padding;
};

// For results in row o; `first` if no row is held yet.
template <class T, class Acc = acc_t<T>>
__device__ SourceRows<Acc> source_rows(const Map<const T>& map, const Axis& axis, int o, bool first) {
  const Tap tap = tap_of(axis, o);
  const Acc below = tap.lambda;
  const int64_t stride = map.stride_h * sizeof(T);
  return {tap.low * stride, tap.high * stride, 1 - below, below, first ? 2 : tap.low - tap_of(axis, o - 1).low, 0};
}

// K channels of a column of a map, V adjacent ones each, of which the rows around a result are held, resized along x.
template <class T, int V, int K>
struct HeldRows {
  using Acc = acc_t<T>;
  const T* base;            // the left neighbour in row 0, in the first of the channels
  uint32_t left[K], right;  // bytes from there to channel k, and from a left neighbour to the right one
  Acc left_share, right_share, upper[K][V], lower[K][V];

  __device__ const T* at(int64_t row) const { return moved(base, row); }

  __device__ void read(int64_t row, Acc (&v)[K][V]) const {
    const T* from = at(row);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      Acc l[V], r[V];
      const T* value = advanced(from, left[k]);
      load_values<T, V>(value, l);
      load_values<T, V>(advanced(value, right), r);
#pragma unroll
      for (int j = 0; j < V; ++j) v[k][j] = left_share * l[j] + right_share * r[j];
    }
  }

  // Reads what the next row of results needs; `step` is that of `rows`.
  __device__ void advance(const SourceRows<Acc>& rows, int step) {
    if (step == 0) return;
    if (step > 1) read(rows.low, lower);
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) upper[k][j] = lower[k][j];
    }
    read(rows.high, lower);
  }

  // A row of results where the map is not resized.
  __device__ void copy(const SourceRows<Acc>& rows, Acc (&v)[K][V]) const {
    const T* from = at(rows.low);
#pragma unroll
    for (int k = 0; k < K; ++k) load_values<T, V>(advanced(from, left[k]), v[k]);
  }
};

}  // namespace a2s
