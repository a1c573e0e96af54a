// The CUDA kernel that resizes S maps to one grid and combines them, without a resized map in memory.
//
// A thread owns columns of its tile and goes down its rows. The two rows of each map around a result are held, already
// resized along x; they serve all results between them. The combination is an Op:
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

constexpr int kPixelBytes = 12 * 1024;  // of what the pixels of a tile share

template <class T, int S, class Op>
struct ResizeArguments {
  Map<const T> maps[S];
  Resize resize[S];
  Op op;
  Map<T> out;
  Tiling tiling;
  Staging staging;
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

// The two rows that a row of results lies between, and their weights; loaded from shared memory at once.
template <class Acc>
struct alignas(16) Between {
  int low, high;
  Acc above, below;
};

template <class Acc>
__device__ Between<Acc> between(const Axis& axis, int o) {
  const Tap tap = tap_of(axis, o);
  const Acc below = tap.lambda;
  return {tap.low, tap.high, 1 - below, below};
}

// Columns of a map, V adjacent channels each, of which the row of a result and the next are held, resized along x.
template <class T, int V, int kColumns>
struct HeldRows {
  using Acc = acc_t<T>;
  const T* base;  // row 0
  int64_t stride_h;
  uint32_t left[kColumns], right[kColumns];
  Acc lambda[kColumns], upper[kColumns][V], lower[kColumns][V];
  int held;  // the row in `upper`

  __device__ void read(int y, Acc (&v)[kColumns][V]) const {
    const T* row = base + y * stride_h;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      Acc l[V], r[V];
      load_values<T, V>(advanced(row, left[k]), l);
      load_values<T, V>(advanced(row, right[k]), r);
#pragma unroll
      for (int j = 0; j < V; ++j) v[k][j] = lerp(l[j], r[j], lambda[k]);
    }
  }

  // The values at a row of results.
  __device__ void row(const Between<Acc>& rows, Acc (&v)[kColumns][V]) {
    if (rows.low != held) {
      if (rows.low == held + 1) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
#pragma unroll
          for (int j = 0; j < V; ++j) upper[k][j] = lower[k][j];
        }
      } else {
        read(rows.low, upper);
      }
      read(rows.high, lower);
      held = rows.low;
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[k][j] = rows.above * upper[k][j] + rows.below * lower[k][j];
    }
  }

  // The same where the map is not resized.
  __device__ void copied_row(int y, Acc (&v)[kColumns][V]) const {
    const T* row = base + y * stride_h;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) load_values<T, V>(advanced(row, left[k]), v[k]);
  }
};

// Blocks that a multiprocessor should hold, which bounds a thread's registers: the most with which no kernel spills.
template <class T, int S, class Op>
constexpr int kResizeBlocks =
    sizeof(T) == 8 || S == 4 ? 2 : S > 1 || Op::kWinner || !std::is_empty_v<typename Op::Pixel> ? 3 : 4;

// A thread owns kColumns columns of V adjacent channels. Results are staged kStagedRows rows at a time.
template <class T, int S, int V, int kColumns, bool kInterleaved, class Op>
__global__ void __launch_bounds__(kBlockThreads, kResizeBlocks<T, S, Op>)
    resize(const __grid_constant__ ResizeArguments<T, S, Op> a) {
  using Acc = acc_t<T>;
  using Pixel = typename Op::Pixel;
  constexpr bool kPixels = !std::is_empty_v<Pixel>;
  constexpr int kStagedRows = staged_rows<T>;
  __shared__ Between<Acc> sources[S][kStagedRows];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const pixels = reinterpret_cast<Pixel*>(shared);
  unsigned char* const staged = shared + a.pixels_bytes;
  unsigned char* const staged_winner = staged + a.staged_bytes;

  const Tile tile = a.tiling.tile(blockIdx.x);
  const int first_x = kInterleaved ? tile.o : tile.i, width = kInterleaved ? tile.outer : tile.inner;
  const int first_c = kInterleaved ? tile.i * V : tile.o;

  // The rows of a map at the tile's first channel and column, and the thread's columns relative to them, in bytes.
  HeldRows<T, V, kColumns> map[S];
  uint32_t factor[kColumns], to[kColumns], winner_to[kColumns], pixel[kColumns];
  bool inside[kColumns];
  T* out = a.out.data + tile.n * a.out.stride_n + tile.y * a.out.stride_h + first_c * a.out.stride_c +
           first_x * a.out.stride_w;
  uint8_t* winner = nullptr;
  const T* factor_row = nullptr;
  if constexpr (Op::kWinner) {
    winner = a.winner.data + tile.n * a.winner.stride_n + tile.y * a.winner.stride_h + first_c * a.winner.stride_c +
             first_x * a.winner.stride_w;
  }
  if constexpr (Op::kFactor) {
    factor_row = row_of(a.op.factor, tile.n, first_c, first_x, tile.y);
  }
  int base_x[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    base_x[s] = tap_of(a.resize[s].x, first_x).low;
    map[s].base = row_of(a.maps[s], tile.n, first_c, base_x[s], 0);
    map[s].stride_h = a.maps[s].stride_h;
    map[s].held = -2;
  }
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    int i = threadIdx.x + k * blockDim.x;
    const bool is_column = i < tile.outer * a.tiling.inner;
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
#pragma unroll 1
  for (int y = 0; y < tile.rows; y += kStagedRows) {
    const int rows = min(kStagedRows, tile.rows - y);
    for (int k = threadIdx.x; k < S * kStagedRows; k += blockDim.x) {
      const int s = k / kStagedRows, r = k % kStagedRows;
      if (r < rows) sources[s][r] = between<Acc>(a.resize[s].y, tile.y + y + r);
    }
    if constexpr (kPixels) {
      const bool stores = kInterleaved ? tile.i == 0 : tile.o == 0;
      for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
        for (int x = threadIdx.x % 32; x < width; x += 32) {
          pixels[r * width + x] = a.op.pixel(tile.n, tile.y + y + r, first_x + x, stores);
        }
      }
    }
    __syncthreads();
    unsigned char* row_to;
    if constexpr (V > 1) row_to = reinterpret_cast<unsigned char*>(out);
    else row_to = staged + Staging::start(out) * sizeof(T);
    [[maybe_unused]] unsigned char* winner_row_to = nullptr;
    if constexpr (Op::kWinner) winner_row_to = staged_winner + Staging::start(winner);
    const auto* row_pixels = reinterpret_cast<const unsigned char*>(pixels);
#pragma unroll 1
    for (int r = 0; r < rows; ++r) {
      Acc v[S][kColumns][V];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (a.resize[s].copies) map[s].copied_row(tile.y + y + r, v[s]);
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
          if (a.op.factor.data) result[0] *= static_cast<Acc>(*advanced(factor_row, factor[k]));
        }
        if (inside[k]) {
          if constexpr (Op::kWinner) winner_row_to[winner_to[k]] = static_cast<unsigned char>(won);
          store_values<T, V>(reinterpret_cast<T*>(row_to + to[k]), result);
        }
      }
      if constexpr (kPixels) row_pixels += width * sizeof(Pixel);
      if constexpr (Op::kFactor) factor_row += a.op.factor.stride_h;
      if constexpr (Op::kWinner) winner_row_to += a.winner_staging.row_pitch;
      row_to += (V > 1 ? a.staging.row_stride : a.staging.row_pitch) * sizeof(T);
    }
    __syncthreads();
    if constexpr (V == 1) a.staging.store(reinterpret_cast<const T*>(staged), out, tile, rows);
    if constexpr (Op::kWinner) {
      a.winner_staging.store(reinterpret_cast<const uint8_t*>(staged_winner), winner, tile, rows);
      winner += rows * a.winner.stride_h;
    }
    out += rows * a.out.stride_h;
  }
}

// Combines the resized `maps` into `out`, a fresh result.
template <class T, int S, int V, bool kInterleaved, class Op>
void launch_resize(const Tensor& on, const ScaleSet<T, S>& scales, const Op& op, const Map<T>& out,
                   const Map<uint8_t>& winner) {
  using Pixel = typename Op::Pixel;
  constexpr bool kPixels = !std::is_empty_v<Pixel>;
  constexpr int kStagedRows = staged_rows<T>;
  constexpr int kColumns = V > 1 || S > 2 || sizeof(T) == 8 ? 1 : S == 1 && !kPixels ? 4 : 2;
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
  const int64_t inner = balanced(all_inner, kPixels && !kInterleaved ? std::min(columns, pixels) : columns);
  int64_t outer = std::max<int64_t>(1, columns / inner), rows = 32;
  if (kPixels && kInterleaved) outer = std::min(outer, pixels);
  for (int s = 0; s < S; ++s) outer = std::min(outer, outer_limit(a.maps[s], kInterleaved, a.resize[s].x.ratio));
  int rows_at_once, shared_bytes;
  const auto cut = [&] {
    a.tiling = Tiling(out.n, out.h, all_outer, all_inner, rows, outer, inner);
    rows_at_once = std::min(kStagedRows, a.tiling.rows);
    a.staging = Staging(out, a.tiling, rows_at_once, kInterleaved);
    if (kPixels) a.pixels_bytes = rows_at_once * (kInterleaved ? a.tiling.outer : a.tiling.inner) * sizeof(Pixel);
    a.staged_bytes = V > 1 ? 0 : a.staging.template bytes<T>();
    shared_bytes = a.pixels_bytes + a.staged_bytes;
    if (Op::kWinner) {
      a.winner_staging = Staging(winner, a.tiling, rows_at_once, kInterleaved);
      shared_bytes += a.winner_staging.template bytes<uint8_t>();
    }
  };
  cut();
  for (; shared_bytes > kMaxSharedBytes && outer > 1; cut()) outer = ceil_div(outer, 2);
  for (; a.tiling.blocks() < kBlocksWanted && rows > kStagedRows; cut()) rows -= kStagedRows;
  for (; a.tiling.blocks() < kBlocksWanted && outer > 1 && outer * inner > kBlockThreads; cut()) --outer;
  for (; a.tiling.blocks() < kBlocksWanted && rows > 2; cut()) --rows;
  const auto threads = static_cast<int>(ceil_div(int64_t{a.tiling.outer} * a.tiling.inner, 32 * kColumns) * 32);
  launch(on, a.tiling.blocks(), threads, shared_bytes, resize<T, S, V, kColumns, kInterleaved, Op>, a);
}

}  // namespace a2s
