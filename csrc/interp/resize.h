// The CUDA kernel that resizes S maps to one grid and combines them, without a resized map in memory.
//
// A thread owns columns of its tile and goes down the rows. The two rows of each map around a result are held, already
// resized along x; they serve all results between them. Where the pixels' share of the combination is costly and pixels
// are adjacent in memory, a block goes through its channels in groups, for which the pixels are computed once. The
// combination is an Op:
//   Op::Pixel          the part that all channels of a pixel share (empty: none), made by pixel(n, y, x, stores)
//   value(pixel, v, winner)   the result of the values v[s] and, if kWinner, the map that won
//   factor             if kFactor, a map of the size of the result, which multiplies it; its data is null if there is none
#pragma once

#include "../support/launch.h"
#include "../support/pack.h"
#include "../support/tile.h"
#include "interp.h"

namespace a2s {

// Rows of results that are staged at once.
template <class T>
constexpr int staged_rows = sizeof(T) == 2 ? 16 : 8;

constexpr int kPixelBytes = 20 * 1024;  // shared memory for the pixels of a tile

template <class T, int S, class Op>
struct ResizeArguments {
  Map<const T> maps[S];
  Resize resize[S];
  Op op;
  Map<T> out;
  Tiling tiling;
  int outer_at_once;  // of a tile's outer columns
  Staging staging;
  Divisor by_width;  // pixels in a row of a tile
  // Only with Op::kWinner.
  Map<uint8_t> winner;
  Staging winner_staging;
  int pixels_bytes, staged_bytes;
};

// Axis::tap in 32 bits.
__device__ inline Tap tap_of(const Axis& axis, int o) {
  const float position = exact_mul(axis.ratio, static_cast<float>(o));
  const int low = static_cast<int>(position);
  return {low, min(low + 1, static_cast<int>(axis.in) - 1), exact_sub(position, static_cast<float>(low))};
}

// The two rows of a map that a row of results lies between, and their weights.
template <class Acc>
struct alignas(16) SourceRows {
  int64_t low, high;  // bytes from row 0
  Acc above, below;
  int step;  // from the low row of the result before: 0, 1 or more
};

// For results in row o; `first` if no row is held yet.
template <class T, class Acc = acc_t<T>>
__device__ SourceRows<Acc> source_rows(const Map<const T>& map, const Axis& axis, int o, bool first) {
  const Tap tap = tap_of(axis, o);
  const Acc below = tap.lambda;
  const int64_t stride = map.stride_h * sizeof(T);
  return {tap.low * stride, tap.high * stride, 1 - below, below, first ? 2 : tap.low - tap_of(axis, o - 1).low};
}

// Columns of a map, V adjacent channels each, of which the rows around a result are held, resized along x.
template <class T, int V, int kColumns>
struct HeldRows {
  using Acc = acc_t<T>;
  const T* base;  // row 0
  uint32_t left[kColumns], right[kColumns];
  Acc lambda[kColumns], upper[kColumns][V], lower[kColumns][V];

  __device__ const T* at(int64_t row) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + row);
  }

  __device__ void read(int64_t row, Acc (&v)[kColumns][V]) const {
    const T* from = at(row);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      Acc l[V], r[V];
      load_values<T, V>(advanced(from, left[k]), l);
      load_values<T, V>(advanced(from, right[k]), r);
#pragma unroll
      for (int j = 0; j < V; ++j) v[k][j] = lerp(l[j], r[j], lambda[k]);
    }
  }

  // The values at a row of results.
  __device__ void row(const SourceRows<Acc>& rows, Acc (&v)[kColumns][V]) {
    if (rows.step != 0) {
      if (rows.step == 1) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
#pragma unroll
          for (int j = 0; j < V; ++j) upper[k][j] = lower[k][j];
        }
      } else {
        read(rows.low, upper);
      }
      read(rows.high, lower);
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[k][j] = rows.above * upper[k][j] + rows.below * lower[k][j];
    }
  }

  // The same where the map is not resized.
  __device__ void copied_row(const SourceRows<Acc>& rows, Acc (&v)[kColumns][V]) const {
    const T* from = at(rows.low);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) load_values<T, V>(advanced(from, left[k]), v[k]);
  }
};

// A thread owns kColumns columns of V adjacent channels. Results are staged kStagedRows rows at a time.
template <class T, int S, int V, int kColumns, bool kInterleaved, class Op>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : std::is_empty_v<typename Op::Pixel> && S == 1 ? 4 : 3)
    resize(const __grid_constant__ ResizeArguments<T, S, Op> a) {
  using Acc = acc_t<T>;
  using Pixel = typename Op::Pixel;
  constexpr bool kPixels = !std::is_empty_v<Pixel>, kGroups = kPixels && !kInterleaved;
  constexpr int kStagedRows = kGroups ? 8 : staged_rows<T>;
  __shared__ SourceRows<Acc> sources[S][kStagedRows];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const pixels = reinterpret_cast<Pixel*>(shared);
  unsigned char* const staged = shared + a.pixels_bytes;
  unsigned char* const staged_winner = staged + a.staged_bytes;

  const Tile tile = a.tiling.tile(blockIdx.x);
  const int first_x = kInterleaved ? tile.o : tile.i, width = kInterleaved ? tile.outer : tile.inner;
  const int first_c = kInterleaved ? tile.i * V : tile.o;
  const int outer_at_once = kGroups ? min(a.outer_at_once, tile.outer) : tile.outer;

  // The maps at a group's first channel and the tile's first column, and the thread's columns relative to them, in bytes.
  HeldRows<T, V, kColumns> map[S];
  uint32_t factor[kColumns], to[kColumns], winner_to[kColumns], pixel[kColumns];
  bool inside[kColumns];
  int base_x[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    base_x[s] = tap_of(a.resize[s].x, first_x).low;
    map[s].base = row_of(a.maps[s], tile.n, first_c, base_x[s], 0);
  }
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    int i = threadIdx.x + k * blockDim.x;
    const bool is_column = i < outer_at_once * a.tiling.inner;
    if (!is_column) i = 0;
    const int o = a.tiling.columns_inner.split(i);
    inside[k] = is_column && i < tile.inner;
    i = min(i, tile.inner - 1);
    const int x = kInterleaved ? o : i, c = kInterleaved ? i * V : o;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Tap tap = tap_of(a.resize[s].x, first_x + x);
      map[s].left[k] = offset_in(a.maps[s], c, tap.low - base_x[s]);
      map[s].right[k] = offset_in(a.maps[s], c, tap.high - base_x[s]);
      map[s].lambda[k] = tap.lambda;
    }
    to[k] = (i * V + o * (V > 1 ? static_cast<int>(a.staging.outer_stride) : a.staging.outer_pitch)) * sizeof(T);
    winner_to[k] = i + o * a.winner_staging.outer_pitch;
    pixel[k] = x * sizeof(Pixel);
    if constexpr (Op::kFactor) factor[k] = offset_in(a.op.factor, c, x);
  }
  int held_c = first_c;  // of the maps
#pragma unroll 1
  for (int y = 0; y < tile.rows; y += kStagedRows) {
    const int rows = min(kStagedRows, tile.rows - y), first_y = tile.y + y;
    for (int k = threadIdx.x; k < S * kStagedRows; k += blockDim.x) {
      const int s = k / kStagedRows, r = k % kStagedRows;
      if (r < rows) sources[s][r] = source_rows<T>(a.maps[s], a.resize[s].y, first_y + r, r == 0 && (kGroups || y == 0));
    }
    const auto all_width = static_cast<int>(a.by_width.divisor);
    if constexpr (kPixels) {
      const bool stores = kInterleaved ? tile.i == 0 : tile.o == 0;
      for (int k = threadIdx.x; k < rows * all_width; k += blockDim.x) {
        int x = k;
        const int r = a.by_width.split(x);
        if (x < width) pixels[k] = a.op.pixel(tile.n, first_y + r, first_x + x, stores);
      }
    }
    // The last group overlaps the one before it, so that all are of one size.
#pragma unroll 1
    for (int o = 0; o < tile.outer; o += outer_at_once) {
      const int c = first_c + (kGroups ? min(o, tile.outer - outer_at_once) : 0);
      if constexpr (kGroups) {
#pragma unroll
        for (int s = 0; s < S; ++s) map[s].base += (c - held_c) * a.maps[s].stride_c;
        held_c = c;
      }
      T* const out = place_in(a.out, tile.n, c, first_x, first_y);
      uint8_t* winner = nullptr;
      const T* factor_row = nullptr;
      if constexpr (Op::kWinner) winner = place_in(a.winner, tile.n, c, first_x, first_y);
      if constexpr (Op::kFactor) {
        if (a.op.factor.data) factor_row = row_of(a.op.factor, tile.n, c, first_x, first_y);
      }
      const bool multiplies = factor_row != nullptr;
      unsigned char* row_to;
      if constexpr (V > 1) row_to = reinterpret_cast<unsigned char*>(out);
      else row_to = staged + Staging::start(out) * sizeof(T);
      [[maybe_unused]] unsigned char* winner_row_to = nullptr;
      if constexpr (Op::kWinner) winner_row_to = staged_winner + Staging::start(winner);
      const auto* row_pixels = reinterpret_cast<const unsigned char*>(pixels);
      __syncthreads();
#pragma unroll 1
      for (int r = 0; r < rows; ++r) {
        Acc v[S][kColumns][V];
#pragma unroll
        for (int s = 0; s < S; ++s) {
          if (a.resize[s].copies) map[s].copied_row(sources[s][r], v[s]);
          else map[s].row(sources[s][r], v[s]);
        }
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          Pixel here;
          if constexpr (kPixels) here = *reinterpret_cast<const Pixel*>(row_pixels + pixel[k]);
          Acc won = 0;
          Acc result[V];
#pragma unroll
          for (int j = 0; j < V; ++j) {
            Acc values[S];
#pragma unroll
            for (int s = 0; s < S; ++s) values[s] = v[s][k][j];
            result[j] = a.op.value(here, values, won);
          }
          if constexpr (Op::kFactor) {
            if (multiplies) result[0] *= static_cast<Acc>(*advanced(factor_row, factor[k]));
          }
          if (inside[k]) {
            if constexpr (Op::kWinner) winner_row_to[winner_to[k]] = static_cast<unsigned char>(won);
            store_values<T, V>(reinterpret_cast<T*>(row_to + to[k]), result);
          }
        }
        if constexpr (kPixels) row_pixels += all_width * sizeof(Pixel);
        if constexpr (Op::kFactor) {
          if (multiplies) factor_row += a.op.factor.stride_h;
        }
        if constexpr (Op::kWinner) winner_row_to += a.winner_staging.row_pitch;
        row_to += (V > 1 ? a.staging.row_stride : a.staging.row_pitch) * sizeof(T);
      }
      __syncthreads();
      if constexpr (V == 1) a.staging.store(reinterpret_cast<const T*>(staged), out, rows, outer_at_once, tile.inner);
      if constexpr (Op::kWinner) {
        a.winner_staging.store(reinterpret_cast<const uint8_t*>(staged_winner), winner, rows, outer_at_once, tile.inner);
      }
    }
  }
}

// Combines the resized `maps` into `out`, a fresh result.
template <class T, int S, int V, bool kInterleaved, class Op>
void launch_resize(const Tensor& on, const ScaleSet<T, S>& scales, const Op& op, const Map<T>& out,
                   const Map<uint8_t>& winner) {
  using Pixel = typename Op::Pixel;
  constexpr bool kPixels = !std::is_empty_v<Pixel>, kGroups = kPixels && !kInterleaved;
  constexpr int kStagedRows = kGroups ? 8 : staged_rows<T>;
  constexpr int kColumns = V > 1 || sizeof(T) == 8 ? 1 : S == 1 && !kPixels ? 4 : 2;
  ResizeArguments<T, S, Op> a{};
  for (int s = 0; s < S; ++s) {
    a.maps[s] = scales.map[s];
    a.resize[s] = scales.resize[s];
  }
  a.op = op;
  a.out = out;
  a.winner = winner;
  const int64_t all_outer = kInterleaved ? out.w : out.c, all_inner = kInterleaved ? out.c / V : out.w;
  constexpr int64_t columns = kBlockThreads * kColumns, pixels = kPixelBytes / sizeof(Pixel) / kStagedRows;
  const int64_t inner = balanced(all_inner, kGroups ? std::min(columns, pixels) : columns);
  int64_t outer = std::min(all_outer, std::max<int64_t>(1, columns / inner)), rows = kGroups ? kStagedRows : 32, groups = 1;
  if (kPixels && kInterleaved) outer = std::min(outer, pixels);
  for (int s = 0; s < S; ++s) outer = std::min(outer, outer_limit(a.maps[s], kInterleaved, a.resize[s].x.ratio));
  int rows_at_once, shared_bytes;
  const auto cut = [&] {
    a.tiling = Tiling(out.n, out.h, all_outer, all_inner, rows, outer * groups, inner);
    a.outer_at_once = balanced(a.tiling.outer, outer);
    rows_at_once = std::min(kStagedRows, a.tiling.rows);
    a.by_width = Divisor(kInterleaved ? a.tiling.outer : a.tiling.inner);
    a.staging = Staging(out, rows_at_once, a.outer_at_once, a.tiling.inner, kInterleaved);
    if (kPixels) a.pixels_bytes = rows_at_once * a.by_width.divisor * sizeof(Pixel);
    a.staged_bytes = V > 1 ? 0 : a.staging.template bytes<T>();
    shared_bytes = a.pixels_bytes + a.staged_bytes;
    if (Op::kWinner) {
      a.winner_staging = Staging(winner, rows_at_once, a.outer_at_once, a.tiling.inner, kInterleaved);
      shared_bytes += a.winner_staging.template bytes<uint8_t>();
    }
  };
  cut();
  for (; shared_bytes > kMaxSharedBytes && outer > 1; cut()) outer = ceil_div(outer, 2);
  if (kGroups) groups = ceil_div(all_outer, outer);
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && groups > 1; cut()) --groups;
  for (; a.tiling.blocks() < kBlocksWanted && rows > kStagedRows; cut()) rows -= kStagedRows;
  for (; a.tiling.blocks() < kBlocksWanted && outer > 1 && outer * inner > kBlockThreads; cut()) --outer;
  for (; a.tiling.blocks() < kBlocksWanted && rows > 2; cut()) --rows;
  const auto threads = static_cast<int>(ceil_div(int64_t{a.outer_at_once} * a.tiling.inner, 32 * kColumns) * 32);
  launch(on, a.tiling.blocks(), threads, shared_bytes, resize<T, S, V, kColumns, kInterleaved, Op>, a);
}

}  // namespace a2s
