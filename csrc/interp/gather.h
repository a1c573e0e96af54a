// The CUDA kernel of Interp's adjoint, for several maps in one launch. Element (i, j) of a map's gradient is the sum over
// the outputs (y, x) that read it of their weight times the value that they pass back.
//
// The adjoint is separable. A thread goes down columns of outputs once: the sums that a row passes to the two input rows
// around it are kept in registers, and a finished sum goes to shared memory. From there it is gathered along x. Columns
// come in chunks, so that any size fits. Several shifts along x share the sums along y: result d of kShifts gathers the
// values of column x + kShifts / 2 - d in place of those of x.
//
// The values that outputs pass back are a Value:
//   rows(n, c, x, y)       pointers to channel c and column x in row y of its maps;  next(rows)   those of the next row
//   column(c, first_x, x)  32-bit offsets of channel c and column first_x + x from rows at column first_x
//   load(rows, column, v)  V adjacent values
#pragma once

#include <vector>

#include "../support/launch.h"
#include "../support/pack.h"
#include "../support/tile.h"
#include "interp.h"
#include "resize.h"

namespace a2s {

// Rows of a tile. With packs a column takes V times the shared memory.
template <int V>
constexpr int gathered_rows = V > 1 ? 4 : 8;

constexpr int kResultBytes = 12 * 1024;  // results of a tile, as sums

// V sums in shared memory, as pieces of 16 bytes that lie `pitch` values apart, so that threads next to each other access
// adjacent pieces.
template <class Acc, int V>
struct Sums {
  static constexpr int kPiece = V == 1 ? 1 : 16 / sizeof(Acc), kPieces = V / kPiece;
  struct alignas(V == 1 ? sizeof(Acc) : 16) Piece {
    Acc v[kPiece];
  };
  __device__ static void load(const Acc* from, int pitch, Acc (&v)[V]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const Piece piece = *reinterpret_cast<const Piece*>(from + p * pitch);
#pragma unroll
      for (int k = 0; k < kPiece; ++k) v[p * kPiece + k] = piece.v[k];
    }
  }
  __device__ static void store(Acc* to, int pitch, const Acc (&v)[V]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      Piece piece;
#pragma unroll
      for (int k = 0; k < kPiece; ++k) piece.v[k] = v[p * kPiece + k];
      *reinterpret_cast<Piece*>(to + p * pitch) = piece;
    }
  }
};

template <class T, class Value>
struct GatherPart {
  Value value;
  Map<T> out;
  Resize resize;  // of the forward pass: from `out` to the outputs
  acc_t<T> scale;
  Tiling tiling;
  Staging staging;
  int64_t shift_stride;  // between the results of adjacent shifts
  int chunk;             // output columns at once
  int pitch;             // of a row of partial sums, or of one piece of each
  int partial_bytes, result_bytes, staged_bytes;
  Divisor by_window;  // the columns of a chunk's partial sums, with those that only shifts read
};

template <class T, class Value>
struct GatherArguments {
  GatherPart<T, Value> part[kMaxScales];
  int first_block[kMaxScales + 1];
};

// The first output whose lower neighbour is `i` or a later input; axis.out if there is none.
__device__ inline int first_output(const Axis& axis, int i) {
  const auto out = static_cast<int>(axis.out);
  const auto low = [&](int o) { return static_cast<int>(exact_mul(axis.ratio, static_cast<float>(o))); };
  if (i <= 0) return 0;
  if (axis.ratio == 0.f) return out;
  int o = static_cast<int>(fminf(static_cast<float>(i) * axis.inverse, static_cast<float>(out)));
  while (o > 0 && low(o - 1) >= i) --o;
  while (o < out && low(o) < i) ++o;
  return o;
}

template <class T, int V, int kColumns, int kShifts, bool kInterleaved, class Value>
__device__ void gather_part(const GatherPart<T, Value>& a, int block, unsigned char* shared) {
  using Acc = acc_t<T>;
  constexpr int kHalo = kShifts / 2;
  using Sum = Sums<Acc, V>;
  constexpr int kRows = gathered_rows<V>, kRowsAtOnce = V == 1 ? 4 : kShifts == 1 ? 2 : 1;
  constexpr int kRowGroups = kRows / kRowsAtOnce;
  const Tile tile = a.tiling.tile(block);
  auto* const partial = reinterpret_cast<Acc*>(shared);
  auto* const result = reinterpret_cast<Acc*>(shared + a.partial_bytes);
  unsigned char* const staging = shared + a.partial_bytes + a.result_bytes;
  auto* const row_start = reinterpret_cast<int*>(staging + kShifts * a.staged_bytes);
  auto* const column_start = row_start + kRows + 2;
  auto* const lambdas = reinterpret_cast<float*>(column_start + 2 + (kInterleaved ? a.tiling.outer : a.tiling.inner));

  const int first_x = kInterleaved ? tile.o : tile.i, width = kInterleaved ? tile.outer : tile.inner;
  const int first_c = kInterleaved ? tile.i * V : tile.o;
  const Axis& axis_y = a.resize.y;
  const Axis& axis_x = a.resize.x;
  const int border_row = static_cast<int>(axis_y.in) - 1 - tile.y;  // its neighbour below is the row itself
  T* const out = a.out.data + tile.n * a.out.stride_n + tile.y * a.out.stride_h + first_c * a.out.stride_c +
                 first_x * a.out.stride_w;
  const auto result_of = [&](int shift) { return out + shift * a.shift_stride; };
  const auto staged_of = [&](int shift) { return reinterpret_cast<T*>(staging + shift * a.staged_bytes); };
  // Where a result goes, and how far the next row is from there.
  const auto place = [&](int shift, int r, int o, int i) {
    if constexpr (V > 1) {
      return result_of(shift) + (r * a.staging.row_stride + (o * static_cast<int>(a.staging.outer_stride) + i * V));
    } else {
      return staged_of(shift) + (Staging::start(result_of(shift)) + r * a.staging.row_pitch + o * a.staging.outer_pitch + i);
    }
  };
  const auto row_distance = V > 1 ? static_cast<ptrdiff_t>(a.staging.row_stride) : static_cast<ptrdiff_t>(a.staging.row_pitch);
  const auto write = [&](T* to, const Acc(&sum)[V]) {
    Acc scaled[V];
#pragma unroll
    for (int k = 0; k < V; ++k) scaled[k] = a.scale * sum[k];
    store_values<T, V>(to, scaled);
  };

  if (a.resize.copies) {
    const int columns = tile.outer * a.tiling.inner;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
      int i = column;
      const int o = a.tiling.columns_inner.split(i);
      if (i >= tile.inner) continue;
      for (int shift = 0; shift < kShifts; ++shift) {
        auto rows = a.value.rows(tile.n, first_c, first_x - kHalo, tile.y);
        const int column_x = (kInterleaved ? o : i) + 2 * kHalo - shift;
        const auto at = a.value.column(kInterleaved ? i * V : o, first_x - kHalo, column_x);
        T* to = place(shift, 0, o, i);
#pragma unroll 4
        for (int r = 0; r < tile.rows; ++r) {
          Acc v[V];
          a.value.template load<V>(rows, at, v);
          a.value.next(rows);
          write(to, v);
          to += row_distance;
        }
      }
    }
  } else {
    for (int k = threadIdx.x; k < tile.rows + 2; k += blockDim.x) row_start[k] = first_output(axis_y, tile.y - 1 + k);
    for (int k = threadIdx.x; k < width + 2; k += blockDim.x) column_start[k] = first_output(axis_x, first_x - 1 + k);
    __syncthreads();
    const int last_x = column_start[width + 1];
    int x = column_start[0];
    bool first_chunk = true, last_chunk;
    do {
      const int chunk = min(a.chunk, last_x - x), window = chunk + 2 * kHalo;
      last_chunk = x + chunk == last_x;
      for (int k = threadIdx.x; k < chunk; k += blockDim.x) {
        const Tap tap = tap_of(axis_x, x + k);
        lambdas[k] = tap.high == tap.low ? 0.f : tap.lambda;
      }
      // Along y.
      const int columns = kInterleaved ? window * a.tiling.inner : tile.outer * (a.chunk + 2 * kHalo);
      for (int first = threadIdx.x; first < columns; first += blockDim.x * kColumns) {
        decltype(a.value.column(0, 0, 0)) at[kColumns];
        int to[kColumns];
        Acc carried[kColumns][V];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const int column = first + k * blockDim.x;
          int inner = column < columns ? column : first;
          to[k] = inner * Sum::kPiece;
          const int outer = kInterleaved ? a.tiling.columns_inner.split(inner) : a.by_window.split(inner);
          const int most = (kInterleaved ? tile.inner : window) - 1;
          if (column >= columns || inner > most) to[k] = -1;
          inner = min(inner, most);
          at[k] = a.value.column(kInterleaved ? inner * V : outer, x - kHalo, kInterleaved ? outer : inner);
#pragma unroll
          for (int j = 0; j < V; ++j) carried[k][j] = 0;
        }
        int y = row_start[0];
        auto rows = a.value.rows(tile.n, first_c, x - kHalo, y);
        auto position = static_cast<float>(y);
        auto i = static_cast<float>(tile.y - 1);
        const int row_pitch = a.pitch * Sum::kPieces;
        Acc* sums = partial - row_pitch;
#pragma unroll 1
        for (int r = -1; r < tile.rows; ++r) {
          const int end = row_start[r + 2];
          Acc upper[kColumns][V], lower[kColumns][V];
#pragma unroll
          for (int k = 0; k < kColumns; ++k) {
#pragma unroll
            for (int j = 0; j < V; ++j) {
              upper[k][j] = carried[k][j];
              lower[k][j] = 0;
            }
          }
          const bool border = r == border_row;
#pragma unroll 1
          for (; y < end; ++y) {
            const Acc lambda = exact_sub(exact_mul(axis_y.ratio, position), i);
            const Acc below = border ? Acc(0) : lambda, above = 1 - below;
            position += 1.f;
#pragma unroll
            for (int k = 0; k < kColumns; ++k) {
              Acc v[V];
              a.value.template load<V>(rows, at[k], v);
#pragma unroll
              for (int j = 0; j < V; ++j) {
                upper[k][j] += above * v[j];
                lower[k][j] += below * v[j];
              }
            }
            a.value.next(rows);
          }
          i += 1.f;
#pragma unroll
          for (int k = 0; k < kColumns; ++k) {
#pragma unroll
            for (int j = 0; j < V; ++j) {
              carried[k][j] = lower[k][j];
            }
            if (r >= 0 && to[k] >= 0) Sum::store(sums + to[k], a.pitch, upper[k]);
          }
          sums += row_pitch;
        }
        // The rows that the gather along x below takes in addition, of a tile with fewer.
        for (int r = tile.rows; r < kRows; ++r, sums += row_pitch) {
          const Acc none[V] = {};
#pragma unroll
          for (int k = 0; k < kColumns; ++k) {
            if (to[k] >= 0) Sum::store(sums + to[k], a.pitch, none);
          }
        }
      }
      __syncthreads();
      // Along x: rows g, g + kRowGroups, ... of an input column a thread. In planar maps adjacent threads take adjacent
      // groups, whose sums lie in other banks.
      const int inputs = kRowGroups * tile.outer * a.tiling.inner;
      for (int input = threadIdx.x; input < inputs; input += blockDim.x) {
        int i = kInterleaved ? input % (tile.outer * a.tiling.inner) : input / kRowGroups;
        const int group = kInterleaved ? input / (tile.outer * a.tiling.inner) : input % kRowGroups;
        const int o = a.tiling.columns_inner.split(i);
        if (i >= tile.inner) continue;
        const int j = kInterleaved ? o : i;
        const int begin = max(column_start[j], x) - x, middle = column_start[j + 1] - x;
        const int end = min(column_start[j + 2] - x, chunk);
        if (begin >= end && !first_chunk && !last_chunk) continue;
        Acc sum[kShifts][kRowsAtOnce][V];
        const auto kept = [&](int shift, int q) {
          return result + ((shift * kRowsAtOnce + q) * Sum::kPieces * inputs + input) * Sum::kPiece;
        };
#pragma unroll
        for (int d = 0; d < kShifts; ++d) {
#pragma unroll
          for (int q = 0; q < kRowsAtOnce; ++q) {
            for (int k = 0; k < V; ++k) sum[d][q][k] = 0;
            if (!first_chunk) Sum::load(kept(d, q), inputs * Sum::kPiece, sum[d][q]);
          }
        }
        const int step = kInterleaved ? a.tiling.inner * Sum::kPiece : 1, row_pitch = a.pitch * Sum::kPieces;
        const Acc* sums = partial + group * row_pitch + begin * step +
                          (kInterleaved ? i * Sum::kPiece : o * (a.chunk + 2 * kHalo));
#pragma unroll 1
        for (int k = begin; k < end; ++k) {
          const Acc lambda = lambdas[k], weight = k < middle ? lambda : 1 - lambda;
#pragma unroll
          for (int d = 0; d < kShifts; ++d) {
#pragma unroll
            for (int q = 0; q < kRowsAtOnce; ++q) {
              Acc v[V];
              Sum::load(sums + (q * kRowGroups * row_pitch + (2 * kHalo - d) * step), a.pitch, v);
#pragma unroll
              for (int l = 0; l < V; ++l) sum[d][q][l] += weight * v[l];
            }
          }
          sums += step;
        }
#pragma unroll
        for (int d = 0; d < kShifts; ++d) {
          T* const to = place(d, group, o, i);
#pragma unroll
          for (int q = 0; q < kRowsAtOnce; ++q) {
            if (last_chunk) {
              if (group + q * kRowGroups < tile.rows) write(to + q * kRowGroups * row_distance, sum[d][q]);
            } else {
              Sum::store(kept(d, q), inputs * Sum::kPiece, sum[d][q]);
            }
          }
        }
      }
      if (!last_chunk) __syncthreads();
      first_chunk = false;
      x += chunk;
    } while (!last_chunk);
  }
  if constexpr (V == 1) {
    __syncthreads();
#pragma unroll 1
    for (int d = 0; d < kShifts; ++d) a.staging.store(staged_of(d), result_of(d), tile.rows, tile.outer, tile.inner);
  }
}

template <class T, int V, int kColumns, int kShifts, bool kInterleaved, class Value>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 3)
    gather(const __grid_constant__ GatherArguments<T, Value> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int block = blockIdx.x;
  int s = 0;
#pragma unroll
  for (int t = 1; t < kMaxScales; ++t) s += block >= a.first_block[t];
  gather_part<T, V, kColumns, kShifts, kInterleaved>(a.part[s], block - a.first_block[s], shared);
}

// Cuts the part into tiles for blocks of `threads`; returns the bytes of shared memory that they need.
template <int V, int kColumns, int kShifts, bool kInterleaved, class T, class Value>
int plan_gather(GatherPart<T, Value>& a, int threads) {
  using Sum = Sums<acc_t<T>, V>;
  constexpr int acc = sizeof(acc_t<T>), halo = kShifts / 2, kRows = gathered_rows<V>;
  const Map<T>& out = a.out;
  const Axis& axis = a.resize.x;
  const auto readers = [&](int64_t inputs) {
    const double most = axis.ratio > 0 ? (inputs + 1) / static_cast<double>(axis.ratio) + 2 : axis.out;
    return most < axis.out ? static_cast<int64_t>(most) : axis.out;
  };
  const int64_t columns = threads * kColumns + 32, results = kResultBytes / (kRows * acc * V * kShifts);
  const int64_t all_outer = kInterleaved ? out.w : out.c, all_inner = kInterleaved ? out.c / V : out.w;
  int64_t rows = kRows, outer, inner;
  if (kInterleaved) {
    inner = balanced(all_inner, V > 1 ? 8 : 64);  // 128 bytes of packs
    outer = std::max<int64_t>(1, results / inner);
  } else {
    inner = balanced(all_inner, std::min<int64_t>(results, 256));
    outer = std::max<int64_t>(1, std::min(columns / std::min(readers(inner), columns), results / inner));
  }
  outer = std::min(outer, a.value.outer_limit(kInterleaved, a.resize.x.ratio > 0 ? 1 / a.resize.x.ratio : a.resize.x.out));
  const auto cut = [&] { a.tiling = Tiling(out.n, out.h, all_outer, all_inner, rows, outer, inner); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
  for (; a.tiling.blocks() < kBlocksWanted && outer > 1; cut()) --outer;
  outer = a.tiling.outer;
  inner = a.tiling.inner;
  const int64_t reading = readers(kInterleaved ? outer : inner);
  a.chunk = static_cast<int>(std::min(reading, std::max<int64_t>(1, columns / (kInterleaved ? inner : outer) - 2 * halo)));
  a.by_window = Divisor(a.chunk + 2 * halo);
  a.staging = Staging(out, a.tiling.rows, a.tiling.outer, a.tiling.inner, kInterleaved);
  const int window = a.chunk + 2 * halo;
  a.pitch = kInterleaved ? window * a.tiling.inner * Sum::kPiece : (a.tiling.outer * window) | 1;
  const auto round = [](int64_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16); };
  if (!a.resize.copies) a.partial_bytes = round(kRows * a.pitch * Sum::kPieces * acc);
  if (!a.resize.copies && reading > a.chunk) a.result_bytes = round(kShifts * kRows * outer * inner * V * acc);
  a.staged_bytes = V > 1 ? 0 : a.staging.template bytes<T>();
  return a.partial_bytes + a.result_bytes + kShifts * a.staged_bytes +
         4 * (kRows + 4 + static_cast<int>(kInterleaved ? outer : inner) + a.chunk);
}

// Gathers all `grads_in`, in one launch; value_of(s) is the Value that outputs pass back to map s. With several shifts a
// map's channels are those of the first shift, then those of the next.
template <class T, int V, bool kInterleaved, int kShifts = 1, class ValueOf>
void launch_gather(const Tensor& on, const std::vector<Tensor>& grads_in, int64_t height, int64_t width,
                   acc_t<T> scale, const ValueOf& value_of) {
  using Value = decltype(value_of(0));
  constexpr int kColumns = V > 1 || sizeof(T) == 8 || kShifts > 1 ? 1 : 2, threads = V > 1 ? 128 : kBlockThreads;
  GatherArguments<T, Value> a{};
  int64_t blocks = 0;
  int shared_bytes = 0;
  for (size_t s = 0; s < grads_in.size(); ++s) {
    auto& part = a.part[s];
    const Map<T> all = map_of<T>(grads_in[s]);
    part.out = channels_of(all, 0, all.c / kShifts);
    part.shift_stride = part.out.c * all.stride_c;
    part.value = value_of(static_cast<int>(s));
    part.resize = Resize(part.out.h, part.out.w, height, width);
    part.scale = scale;
    shared_bytes = std::max(shared_bytes, plan_gather<V, kColumns, kShifts, kInterleaved>(part, threads));
    a.first_block[s] = static_cast<int>(blocks);
    blocks += part.tiling.blocks();
    check_blocks(blocks);
  }
  for (size_t s = grads_in.size(); s <= kMaxScales; ++s) a.first_block[s] = static_cast<int>(blocks);
  launch(on, blocks, threads, shared_bytes, gather<T, V, kColumns, kShifts, kInterleaved, Value>, a);
}

// The gradient itself.
template <class T>
struct PlainGrad {
  Map<const T> grad;

  int64_t outer_limit(bool interleaved, double step) const { return a2s::outer_limit(grad, interleaved, step); }
  __device__ const T* rows(int n, int c, int x, int y) const { return row_of(grad, n, c, x, y); }
  __device__ void next(const T*& row) const { row += grad.stride_h; }
  __device__ uint32_t column(int c, int, int x) const { return offset_in(grad, c, x); }
  template <int V>
  __device__ void load(const T* row, uint32_t column, acc_t<T> (&v)[V]) const {
    load_values<T, V>(advanced(row, column), v);
  }
};

}  // namespace a2s
