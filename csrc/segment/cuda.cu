// segment on a GPU.
#include <torch/csrc/stable/library.h>

#include "../interp/held_rows.h"
#include "../support/launch.h"
#include "segment.h"

namespace a2s {
namespace {

template <class T>
struct SegmentArguments {
  Map<const T> scores;
  Resize resize;
  uint8_t* labels;
  Tiling tiling;  // of strips of kRows rows
};

// A thread labels kRows pixels below each other: while they lie between the same rows of the scores, a class is resized
// along x once for all of them.
template <class T, int kRows>
__global__ void __launch_bounds__(kBlockThreads, 4) segment_rows(const __grid_constant__ SegmentArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ SourceRows<Acc> sources[kRows];
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = tile.x + threadIdx.x, y = tile.y * kRows;
  const int width = static_cast<int>(a.resize.x.out), height = static_cast<int>(a.resize.y.out);
  if (threadIdx.x < kRows) {
    const int r = threadIdx.x;
    sources[r] = source_rows<T>(a.scores, a.resize.y, min(y + r, height - 1), r == 0);
  }
  __syncthreads();
  if (x >= width) return;
  const Tap column = tap_of(a.resize.x, x);
  HeldRows<T, 1, 1> map;
  map.base = row_of(a.scores, tile.n, 0, column.low, 0);
  map.left[0] = 0;
  map.right = offset_in(a.scores, 0, column.high - column.low);
  map.right_share = column.lambda;
  map.left_share = 1 - map.right_share;
  Acc best[kRows], above[kRows], below[kRows];
  int label[kRows];
  bool between_two = !a.resize.copies;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    best[r] = -INFINITY;
    label[r] = 0;
    above[r] = sources[r].above;
    below[r] = sources[r].below;
    between_two = between_two && (r == 0 || sources[r].step == 0);
  }
  const auto consider = [&](int c, int r, Acc score) {
    const bool takes = beats(score, best[r]);
    best[r] = takes ? score : best[r];
    label[r] = takes ? c : label[r];
  };
  const int classes = static_cast<int>(a.scores.c);
  if (between_two) {
#pragma unroll 1
    for (int c = 0; c < classes; ++c) {
      map.read(sources[0].low, map.upper);
      map.read(sources[0].high, map.lower);
      map.base += a.scores.stride_c;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        consider(c, r, above[r] * map.upper[0][0] + below[r] * map.lower[0][0]);
      }
    }
  } else {
#pragma unroll 1
    for (int c = 0; c < classes; ++c) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        Acc score[1][1];
        if (a.resize.copies) {
          map.copy(sources[r], score);
        } else {
          map.advance(sources[r], sources[r].step);
          score[0][0] = above[r] * map.upper[0][0] + below[r] * map.lower[0][0];
        }
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

Tensor segment(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  const Tensor from = addressable(scores, false);
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kRows = sizeof(T) == 8 ? 4 : 8;
    const Map<const T> map = map_of<const T>(from);
    SegmentArguments<T> a{map, Resize(map.h, map.w, height, width), static_cast<uint8_t*>(labels.data_ptr()),
                          Tiling(map.n, ceil_div(height, kRows), width, 1, 1, kBlockThreads, 1)};
    a.tiling.width = static_cast<int>(ceil_div(a.tiling.width, 32) * 32);  // whole warps
    launch(scores, a.tiling.blocks(), a.tiling.width, 0, segment_rows<T, kRows>, a);
  });
  return labels;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("segment", TORCH_BOX(&a2s::segment)); }
