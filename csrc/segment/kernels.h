// Segment on a GPU: the kernel and the host code that launches it.
#pragma once

#include "../interp/resize.h"
#include "segment.h"

namespace a2s {

template <class T>
struct SegmentArguments {
  Map<const T> scores;
  Resize resize;
  uint8_t* labels;
  Tiling tiling;  // of columns of strips of rows
};

// A thread labels kRows pixels below each other: while they lie between the same rows of the scores, a class is resized
// along x once for all of them.
template <class T, int kRows>
__global__ void __launch_bounds__(kBlockThreads, 4) segment_rows(const __grid_constant__ SegmentArguments<T> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = tile.i + threadIdx.x, width = static_cast<int>(a.resize.x.out), height = static_cast<int>(a.resize.y.out);
  if (static_cast<int>(threadIdx.x) >= tile.inner) return;
  const Tap column = tap_of(a.resize.x, x);
  HeldRows<T, 1, 1> map;
  map.base = a.scores.data + tile.n * a.scores.stride_n + column.low * a.scores.stride_w;
  map.left[0] = 0;
  map.right[0] = static_cast<uint32_t>((column.high - column.low) * a.scores.stride_w * sizeof(T));
  map.lambda[0] = column.lambda;
  const int y = tile.y * kRows;
  SourceRows<Acc> rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = source_rows<T>(a.scores, a.resize.y, min(y + r, height - 1), r == 0);
  Acc best[kRows];
  int label[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    best[r] = -INFINITY;
    label[r] = 0;
  }
  const auto consider = [&](int c, int r, Acc score) {
    const bool takes = beats(score, best[r]);
    best[r] = takes ? score : best[r];
    label[r] = takes ? c : label[r];
  };
  const int classes = static_cast<int>(a.scores.c);
  if (!a.resize.copies && rows[0].low == rows[kRows - 1].low) {
#pragma unroll 1
    for (int c = 0; c < classes; ++c) {
      map.read(rows[0].low, map.upper);
      map.read(rows[0].high, map.lower);
      map.base += a.scores.stride_c;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        consider(c, r, rows[r].above * map.upper[0][0] + rows[r].below * map.lower[0][0]);
      }
    }
  } else {
#pragma unroll 1
    for (int c = 0; c < classes; ++c) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        Acc score[1][1];
        if (a.resize.copies) map.copied_row(rows[r], score);
        else map.row(rows[r], score);
        consider(c, r, score[0][0]);
      }
      map.base += a.scores.stride_c;
    }
  }
  uint8_t* to = a.labels + (int64_t{tile.n} * height + y) * width + x;
#pragma unroll
  for (int r = 0; r < kRows; ++r, to += width) {
    if (y + r < height) *to = static_cast<uint8_t>(label[r]);
  }
}

inline Tensor segment(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  const Tensor from = addressable(scores, false);
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kRows = sizeof(T) == 8 ? 4 : 8;
    const Map<const T> map = map_of<const T>(from);
    const SegmentArguments<T> a{map, Resize(map.h, map.w, height, width), static_cast<uint8_t*>(labels.data_ptr()),
                                Tiling(map.n, ceil_div(height, kRows), 1, width, 1, 1, kBlockThreads)};
    const auto threads = static_cast<int>(ceil_div(a.tiling.inner, 32) * 32);
    launch(scores, a.tiling.blocks(), threads, 0, segment_rows<T, kRows>, a);
  });
  return labels;
}

}  // namespace a2s
