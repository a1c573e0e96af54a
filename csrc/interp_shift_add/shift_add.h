// The CUDA kernel of interp_shift_add. The sum is separable: three taps are summed along y for each tap along x, at the
// columns of the planes, and these three sums are resized along x.
#pragma once

#include "../interp/held_rows.h"
#include "../support/launch.h"
#include "interp_shift_add.h"

namespace a2s {

template <class T>
struct ShiftAddArguments {
  Map<const T> planes, base;
  Map<T> out;
  Resize resize;
  int64_t next_tap, next_row;  // bytes between the planes of adjacent taps, and between their rows
  Tiling tiling;   // into groups of V channels
  Places sources;  // columns of the planes and channels of a tile
  Places results;  // columns of the result and groups of V channels
  Divisor by_results;
  bool pairs;  // a tile takes two columns of the planes for each tap, not all from the first to the last
  Staging staging;
};

constexpr int kShiftAddRows = 10;

// A resized row of the planes: of the two rows that it lies between, those held for the row before are kept.
template <class Acc>
struct HeldTaps {
  Acc below;  // weight of the lower one
  int step;   // 0: both are held; 1: the next row follows; 2: both follow; -1: beyond the map, both are 0
  int64_t to_upper, to_lower;  // bytes to them from the last row that was read

  __device__ static HeldTaps of(const Axis& axis, int64_t stride, int y, bool first) {
    if (static_cast<uint32_t>(y) >= static_cast<uint32_t>(axis.out)) return {0, -1, 0, 0};
    first |= y == 0;
    const Tap tap = tap_of(axis, y), before = first ? Tap{-1, 0} : tap_of(axis, y - 1);
    const bool follows = !first && tap.low == before.high && tap.high > tap.low;
    return {tap.lambda, tap.low == before.low ? 0 : follows ? 1 : 2, (tap.low - before.high) * stride,
            (tap.high - tap.low) * stride};
  }
};

// A row of sums along y: for each tap along x a place for each column of the planes and channel of a tile. The places
// behind them are 0, as are taps beyond the map.
template <class Acc>
struct SumsRow {
  static constexpr int kPlaces = kBlockThreads * 4 / sizeof(Acc);
  alignas(16) Acc of_tap[kTaps][kPlaces + 8];
};

// The taps of a result along x: V places at `left` and V at `right`, from the first place of a row of sums.
template <class Acc>
struct TapsAlongX {
  int left[kTaps], right[kTaps];
  Acc left_share[kTaps], right_share[kTaps];

  template <int V>
  __device__ void add(const SumsRow<Acc>& row, Acc (&sum)[V]) const {
    constexpr int kPiece = V * sizeof(Acc) < 16 ? V : 16 / sizeof(Acc);
#pragma unroll
    for (int d = 0; d < kTaps; ++d) {
#pragma unroll
      for (int k = 0; k < V; k += kPiece) {
        const auto l = *reinterpret_cast<const Pack<Acc, kPiece>*>(row.of_tap[d] + left[d] + k);
        const auto r = *reinterpret_cast<const Pack<Acc, kPiece>*>(row.of_tap[d] + right[d] + k);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
          sum[k + j] += left_share[d] * l.v[j];
          sum[k + j] += right_share[d] * r.v[j];
        }
      }
    }
  }
};

// A thread first goes down a column of the planes, holds the two rows around a result of all nine, and sums three taps
// along y for each tap along x. Then it resizes these sums along x, from shared memory: of a column of the result, or
// of a pack of V channels where there are such.
template <class T, int V, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 5)
    shift_add(const __grid_constant__ ShiftAddArguments<T> a) {
  using Acc = acc_t<T>;
  constexpr bool kStaged = V == 1;
  constexpr int kPlaces = SumsRow<Acc>::kPlaces;
  __shared__ HeldTaps<Acc> rows[kShiftAddRows][kTaps];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const sums = reinterpret_cast<SumsRow<Acc>*>(shared);
  const Tile tile = a.tiling.tile(blockIdx.x);
  const Axis& axis = a.resize.x;
  const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(a.out.w);
  if (thread < kShiftAddRows * kTaps) {
    const int r = thread / kTaps, d = thread % kTaps;
    rows[r][d] = HeldTaps<Acc>::of(a.resize.y, a.next_row, tile.y + r + d - 1, r == 0);
    if (r < tile.rows) {
#pragma unroll
      for (int j = 0; j < V; ++j) sums[r].of_tap[d][kPlaces + j] = 0;
    }
  }
  __syncthreads();

  const int first = tap_of(axis, max(tile.x - 1, 0)).low;
  int u, slot;
  a.sources.template split<kInterleaved>(thread, u, slot);
  const Tap tap = tap_of(axis, min(max(tile.x + (a.pairs ? u / 2 - 1 : tile.width), 0), width - 1));
  const int x = a.pairs ? (u % 2 == 0 ? tap.low : tap.high) : min(first + u, tap.high);
  if (u < a.sources.width && slot < tile.channels * V) {
    const T* planes[kTaps];  // of the first tap in each row of taps
    planes[0] = row_of(a.planes, tile.n, tile.c * V + slot, x, 0);
#pragma unroll
    for (int dy = 1; dy < kTaps; ++dy) planes[dy] = moved(planes[dy - 1], kTaps * a.next_tap);
    Acc upper[kTaps][kTaps] = {}, lower[kTaps][kTaps] = {};
#pragma unroll 1
    for (int r = 0; r < tile.rows; ++r) {
      Acc below[kTaps];
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        const HeldTaps<Acc>& row = rows[r][dy];
        const int step = row.step;
        below[dy] = row.below;
        const auto read = [&](int64_t distance) {
          planes[dy] = moved(planes[dy], distance);
          const T* from = planes[dy];
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx, from = moved(from, a.next_tap)) {
            upper[dy][dx] = lower[dy][dx];
            lower[dy][dx] = static_cast<Acc>(*from);
          }
        };
        if (step == 0) continue;
        if (step == 1) {
          read(a.next_row);
        } else if (step > 1) {
          read(row.to_upper);
          read(row.to_lower);
        } else {
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx) upper[dy][dx] = lower[dy][dx] = 0;
        }
      }
      Acc sum[kTaps] = {};
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        const Acc above = 1 - below[dy];
#pragma unroll
        for (int dx = 0; dx < kTaps; ++dx) {
          sum[dx] += above * upper[dy][dx];
          sum[dx] += below[dy] * lower[dy][dx];
        }
      }
#pragma unroll
      for (int dx = 0; dx < kTaps; ++dx) sums[r].of_tap[dx][thread] = sum[dx];
    }
  }
  __syncthreads();

  // Along x, in column u of the tile.
  const auto taps_of = [&](int u, int channel) {
    TapsAlongX<Acc> taps;
    const int next = kInterleaved ? a.sources.slots : 1;
#pragma unroll
    for (int d = 0; d < kTaps; ++d) {
      const int x = tile.x + u + d - 1;
      const bool inside = static_cast<uint32_t>(x) < static_cast<uint32_t>(width);
      const Tap tap = tap_of(axis, x);
      const int column = a.pairs ? 2 * (u + d) : tap.low - first;
      taps.left[d] = inside ? column * next + channel * (kInterleaved ? 1 : a.sources.width) : kPlaces;
      taps.right[d] = taps.left[d] + (inside ? next : 0);
      taps.right_share[d] = tap.lambda;
      taps.left_share[d] = 1 - taps.right_share[d];
    }
    return taps;
  };
  T* const out = place_in(a.out, tile.n, tile.c * V, tile.x, tile.y);
  if constexpr (kStaged) {
    auto* const staged = reinterpret_cast<T*>(sums + tile.rows);
    a.results.template split<kInterleaved>(thread, u, slot);
    if (u < tile.width && slot < tile.channels) {
      const TapsAlongX<Acc> taps = taps_of(u, slot);
      const T* from = row_of(a.base, tile.n, tile.c + slot, tile.x + u, tile.y);
      const int pitch = a.staging.outer_pitch;
      T* to = staged + (Staging::start(out) + (kInterleaved ? slot + u * pitch : u + slot * pitch));
      Acc sum[kShiftAddRows][1];
#pragma unroll
      for (int r = 0; r < kShiftAddRows; ++r, from += a.base.stride_h) {
        if (r == tile.rows) break;
        load_values<T, 1>(from, sum[r]);
      }
#pragma unroll
      for (int r = 0; r < kShiftAddRows; ++r, to += a.staging.row_pitch) {
        if (r == tile.rows) break;
        taps.add(sums[r], sum[r]);
        store_values<T, 1>(to, sum[r]);
      }
    }
    __syncthreads();
    const int outer = kInterleaved ? tile.width : tile.channels, inner = kInterleaved ? tile.channels : tile.width;
    a.staging.store(staged, out, tile.rows, outer, inner);
  } else {
#pragma unroll 1
    for (int i = thread; i < tile.rows * a.results.count(); i += blockDim.x) {
      int place = i;
      const int r = a.by_results.split(place);
      a.results.template split<kInterleaved>(place, u, slot);
      if (u >= tile.width || slot >= tile.channels) continue;
      Acc sum[V];
      load_values<T, V>(row_of(a.base, tile.n, (tile.c + slot) * V, tile.x + u, tile.y + r), sum);
      taps_of(u, slot * V).add(sums[r], sum);
      store_values<T, V>(place_in(a.out, tile.n, (tile.c + slot) * V, tile.x + u, tile.y + r), sum);
    }
  }
}

template <class T, int V, bool kInterleaved>
void launch_shift_add(const Tensor& on, const Map<const T>& planes, const Map<const T>& base, const Map<T>& out) {
  using Sums = SumsRow<acc_t<T>>;
  ShiftAddArguments<T> a{};
  a.planes = planes;
  a.base = base;
  a.out = out;
  a.next_tap = out.c * planes.stride_c * static_cast<int64_t>(sizeof(T));
  a.next_row = bytes_between_rows(planes);
  a.resize = Resize(planes.h, planes.w, out.h, out.w);
  const double ratio = a.resize.x.ratio;
  a.pairs = ratio > 2;
  // Columns of the planes that a tile takes for `width` columns of the result, with one to the right of the last.
  const auto sources = [&](int64_t width) {
    return a.pairs ? 2 * (width + 2) : std::min(planes.w + 1, static_cast<int64_t>((width + 1) * ratio) + 3);
  };
  const auto places = [&](int64_t width) { return std::max(width, sources(width)); };
  int64_t channels = kInterleaved ? std::min<int64_t>(out.c, 16) : 1, width = 1, rows = kShiftAddRows;
  while (width < out.w && channels * places(width + 1) <= Sums::kPlaces) ++width;
  width = balanced(out.w, width);
  if (!kInterleaved) channels = std::min(out.c, Sums::kPlaces / places(width));
  a.sources = Places(sources(width), channels, kInterleaved);
  a.results = Places(width, channels / V, kInterleaved);
  a.by_results = Divisor(a.results.count());
  const auto cut = [&] { a.tiling = Tiling(out.n, out.h, out.w, out.c / V, rows, width, channels / V); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
  int bytes = a.tiling.rows * static_cast<int>(sizeof(Sums));
  if (V == 1) {
    const int outer = kInterleaved ? a.tiling.width : a.tiling.channels;
    a.staging = Staging(out, a.tiling.rows, outer, kInterleaved ? a.tiling.channels : a.tiling.width, kInterleaved);
    bytes += a.staging.template bytes<T>();
  }
  const int threads = std::max(a.sources.threads(), a.results.threads());
  launch(on, a.tiling.blocks(), threads, bytes, shift_add<T, V, kInterleaved>, a);
}

}  // namespace a2s
