// segment on a GPU.
#include <torch/csrc/stable/library.h>

#include "../interp/held_rows.h"
#include "../support/launch.h"
#include "segment.h"

namespace a2s {
namespace {

constexpr int kMaxWidth = 2 * kBlockThreads + 64;  // of a tile, a thread a column
constexpr int kPairBytes = 16 * 1024;              // shared memory for scores
template <class T>
constexpr int kLabelRows = sizeof(T) == 8 ? 4 : 8;

template <class T>
struct SegmentArguments {
  Map<const T> scores;
  Resize resize;
  Map<uint8_t> labels;
  Tiling tiling;
  Staging staging;
  int label_bytes;
  int group;          // classes in shared memory at once, none where one is too wide
  Divisor by_column;  // source columns of a tile
};

// A score, and the difference of the score below it.
template <class Acc>
struct alignas(2 * sizeof(Acc)) Pair {
  Acc upper, difference;
};

// The best class of kRows pixels below each other.
template <class Acc, int kRows>
struct Labels {
  Acc best[kRows];
  int label[kRows];

  __device__ Labels() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      best[r] = -INFINITY;
      label[r] = 0;
    }
  }
  // Takes class c, greater than those before, unless its score is lower.
  __device__ void consider(int r, int c, Acc score) {
    const bool takes = beats(score, best[r]);
    best[r] = takes ? score : best[r];
    label[r] = takes ? c : label[r];
  }
};

// Labels a tile whose rows lie between the same two rows of the scores, which are brought to shared memory.
template <class T, int kRows>
__device__ void label_between(const SegmentArguments<T>& a, const Tile& tile, const SourceRows<acc_t<T>>* sources,
                              Pair<acc_t<T>>* pairs, Labels<acc_t<T>, kRows>& labels) {
  using Acc = acc_t<T>;
  const int first_x = tap_of(a.resize.x, tile.x).low;
  const int columns = static_cast<int>(a.by_column.divisor), classes = static_cast<int>(a.scores.c);
  const Tap tap = tap_of(a.resize.x, tile.x + min(static_cast<int>(threadIdx.x), tile.width - 1));
  const Acc lambda = tap.lambda;
  const uint32_t pitch = columns * sizeof(Pair<Acc>);
  Acc below[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) below[r] = sources[r].below;
  const T* scores = row_of(a.scores, tile.n, 0, first_x, 0);
#pragma unroll 1
  for (int c = 0; c < classes;) {
    const int group = min(a.group, classes - c), end = c + group;
    const T *upper = moved(scores, sources[0].low), *lower = moved(scores, sources[0].high);
    __syncthreads();
    for (int i = threadIdx.x; i < group * columns; i += blockDim.x) {
      int x = i;
      const int k = a.by_column.split(x);
      const uint32_t at = offset_in(a.scores, k, min(x, static_cast<int>(a.resize.x.in) - 1 - first_x));
      const Acc above = static_cast<Acc>(*advanced(upper, at));
      pairs[i] = {above, static_cast<Acc>(*advanced(lower, at)) - above};
    }
    __syncthreads();
    const Pair<Acc>* pair = pairs + (tap.low - first_x);
#pragma unroll 2
    for (; c < end; ++c, pair = advanced(pair, pitch)) {
      const Pair<Acc> left = pair[0], right = pair[1];
      const Acc score = left.upper + lambda * (right.upper - left.upper);
      const Acc difference = left.difference + lambda * (right.difference - left.difference);
#pragma unroll
      for (int row = 0; row < kRows; ++row) labels.consider(row, c, score + below[row] * difference);
    }
    scores += a.group * a.scores.stride_c;
  }
}

// Labels the pixels of a column of any tile.
template <class T, int kRows>
__device__ void label_column(const SegmentArguments<T>& a, int n, int x, const SourceRows<acc_t<T>>* sources,
                             Labels<acc_t<T>, kRows>& labels) {
  const Tap tap = tap_of(a.resize.x, x);
  HeldRows<T, 1, 1> map;
  map.base = row_of(a.scores, n, 0, tap.low, 0);
  map.left[0] = 0;
  map.right = offset_in(a.scores, 0, tap.high - tap.low);
  map.right_share = tap.lambda;
  map.left_share = 1 - map.right_share;
#pragma unroll 1
  for (int c = 0; c < static_cast<int>(a.scores.c); ++c) {
    asm volatile("" ::: "memory");  // or all of `sources` would be kept in registers
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      acc_t<T> score[1][1];
      if (a.resize.copies) {
        map.copy(sources[r], score);
      } else {
        map.advance(sources[r], sources[r].step);
        score[0][0] = map.upper[0][0] + sources[r].below * (map.lower[0][0] - map.upper[0][0]);
      }
      labels.consider(r, c, score[0][0]);
    }
    map.base += a.scores.stride_c;
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxWidth, sizeof(T) == 8 ? 1 : 2)
    segment_tile(const __grid_constant__ SegmentArguments<T> a) {
  constexpr int kRows = kLabelRows<T>;
  __shared__ SourceRows<acc_t<T>> sources[kRows];
  extern __shared__ __align__(16) unsigned char shared[];
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = threadIdx.x;
  if (x < kRows) sources[x] = source_rows<T>(a.scores, a.resize.y, tile.y + min(x, tile.rows - 1), x == 0);
  __syncthreads();
  Labels<acc_t<T>, kRows> labels;
  if (a.group > 0 && sources[0].low == sources[kRows - 1].low) {
    label_between(a, tile, sources, reinterpret_cast<Pair<acc_t<T>>*>(shared + a.label_bytes), labels);
  } else if (x < tile.width) {
    label_column(a, tile.n, tile.x + x, sources, labels);
  }
  uint8_t* const to = place_in(a.labels, tile.n, 0, tile.x, tile.y);
  if (x < tile.width) {
    uint8_t* staged = shared + (Staging::start(to) + x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) staged[r * a.staging.row_pitch] = static_cast<uint8_t>(labels.label[r]);
  }
  __syncthreads();
  a.staging.store(shared, to, tile.rows, 1, tile.width);
}

Tensor segment(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  const Tensor from = addressable(scores, false);
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kRows = kLabelRows<T>;
    SegmentArguments<T> a{};
    a.scores = map_of<const T>(from);
    a.resize = Resize(a.scores.h, a.scores.w, height, width);
    const int64_t n = a.scores.n, image = height * width;
    a.labels = {static_cast<uint8_t*>(labels.data_ptr()), n, 1, height, width, image, image, width, 1, false};
    a.tiling = Tiling(n, height, width, 1, kRows, kMaxWidth, 1);
    a.staging = Staging(a.labels, kRows, 1, a.tiling.width, false);
    a.label_bytes = a.staging.template bytes<uint8_t>();
    const int64_t columns = static_cast<int64_t>(a.resize.x.ratio * static_cast<float>(a.tiling.width)) + 3;
    const int64_t class_bytes = columns * sizeof(Pair<acc_t<T>>);
    if (!a.resize.copies) a.group = static_cast<int>(std::min(a.scores.c, kPairBytes / class_bytes));
    a.by_column = Divisor(columns);
    const int threads = static_cast<int>(ceil_div(a.tiling.width, 32) * 32);
    launch(scores, a.tiling.blocks(), threads, a.label_bytes + a.group * class_bytes, segment_tile<T>, a);
  });
  return labels;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("segment", TORCH_BOX(&a2s::segment)); }
