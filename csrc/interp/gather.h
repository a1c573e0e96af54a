// The CUDA kernel of Interp's adjoint, for several maps in one launch. Element (i, j) of a map's gradient is the sum
// over the outputs (y, x) that read it of their weight times their gradient.
//
// The adjoint is separable. A block makes rows x columns of the gradient, group by group of its channels. A thread goes
// down a column of outputs once, for K channels: the sums that a row passes to the two input rows around it are kept in
// registers, and a finished sum goes to shared memory. From there it is gathered along x. Columns come in chunks, so
// that any size fits.
#pragma once

#include "../support/launch.h"
#include "copy.h"
#include "held_rows.h"

namespace a2s {

// Rows of a tile, and those that a thread gathers along x at once. With packs a column takes V times the shared memory.
template <int V>
constexpr int kGatherRows = V > 1 ? 4 : 8;
template <int V>
constexpr int kRowsAtOnce = V == 1 ? kGatherRows<V> : 2;

// Sums in shared memory. A column and its K channels have a place of K x kGatherRows x V sums along y. The results of a
// thread that gathers along x have one of kRowsAtOnce x V. Distances between places are odd, in pieces of a
// value or, with packs, of 16 bytes, so that adjacent threads access different banks.
template <class Acc, int V, int K>
struct Sums {
  static constexpr int kPiece = V == 1 ? 1 : 16 / sizeof(Acc);
  static constexpr int kColumn = (K * kGatherRows<V> * V / kPiece | 1) * kPiece;
  static constexpr int kResult = (kRowsAtOnce<V> * V / kPiece | 1) * kPiece;

  struct alignas(V == 1 ? sizeof(Acc) : 16) Piece {
    Acc v[kPiece];
  };
  __device__ static void load(const Acc* from, Acc (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k += kPiece) {
      const Piece piece = *reinterpret_cast<const Piece*>(from + k);
#pragma unroll
      for (int l = 0; l < kPiece; ++l) v[k + l] = piece.v[l];
    }
  }
  __device__ static void store(Acc* to, const Acc (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k += kPiece) {
      Piece piece;
#pragma unroll
      for (int l = 0; l < kPiece; ++l) piece.v[l] = v[k + l];
      *reinterpret_cast<Piece*>(to + k) = piece;
    }
  }
};

template <class T>
struct GatherPart {
  Map<const T> grad;
  Map<T> out;
  int64_t next_row;  // bytes between rows of `grad`
  ImageCopy<T> copy;
  Resize resize;  // of the forward pass: from `out` to the outputs
  acc_t<T> scale;
  Tiling tiling;
  Staging staging;
  int group;             // channels at once
  int chunk;             // output columns at once
  int partial_bytes, result_bytes, staged_bytes;
  Places columns;               // that are summed along y
  Divisor by_inner, by_inputs;  // of the inputs that are gathered along x
};

template <class T>
struct GatherArguments {
  GatherPart<T> part[kMaxScales];
  Parts parts;
};

// The first output whose lower neighbour is `i` or a later input; axis.out if there is none.
A2S_HD int first_output(const Axis& axis, int i) {
  const auto out = static_cast<int>(axis.out);
  const auto low = [&](int o) { return static_cast<int>(exact_mul(axis.ratio, static_cast<float>(o))); };
  if (i <= 0) return 0;
  if (axis.ratio == 0.f) return out;
  int o = static_cast<int>(fminf(static_cast<float>(i) * axis.inverse, static_cast<float>(out)));
  while (o > 0 && low(o - 1) >= i) --o;
  while (o < out && low(o) < i) ++o;
  return o;
}

// Along x, the tables of a tile in shared memory, and their use. For inputs [first, first + count) and the one on each
// side: the first output whose lower neighbour is the input or a later one, counted from output `origin`.
__device__ inline void store_starts(const Axis& axis, int first, int count, int origin, int* starts) {
  for (int k = threadIdx.x; k < count + 2; k += blockDim.x) starts[k] = first_output(axis, first - 1 + k) - origin;
}

// Of outputs [first, first + count): the weight of the higher neighbour, unless that is the lower one itself.
__device__ inline void store_lambdas(const Axis& axis, int first, int count, float* lambdas) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) {
    const Tap tap = tap_of(axis, first + k);
    lambdas[k] = tap.high == tap.low ? 0.f : tap.lambda;
  }
}

// Outputs that read an input, and how many of them a thread keeps the weights of.
constexpr int kReaders = 4;

struct Readers {
  int begin, middle, end;  // until `middle` as the higher neighbour

  // Of the input in one of these outputs.
  template <class Acc>
  __device__ Acc weight(const Axis& axis, int output) const {
    const Tap tap = tap_of(axis, output);
    const Acc lambda = tap.high == tap.low ? 0.f : tap.lambda;
    return output < middle ? lambda : 1 - lambda;
  }
};

// Calls body(weight) for each output in [begin, end) that reads an input: until `middle` as its higher neighbour.
template <class Acc, class Body>
__device__ void for_each_reader(const float* lambdas, int begin, int middle, int end, const Body& body) {
#pragma unroll 1
  for (int u = begin; u < end; ++u) {
    const Acc lambda = lambdas[u];
    body(u < middle ? lambda : 1 - lambda);
  }
}

// The outputs [begin, end) whose lower neighbour is an input row, none for a row that a tile does not have. In output
// o, the row below has weight slope * o - low.
struct alignas(16) RowSpan {
  int begin, end;
  float slope, low;
};

__device__ inline RowSpan row_span(const Axis& axis, int i, bool in_tile) {
  const bool border = i == static_cast<int>(axis.in) - 1;  // the row below is the row itself
  const int begin = first_output(axis, i);
  const int end = in_tile ? first_output(axis, i + 1) : begin;
  return {begin, end, border ? 0.f : axis.ratio, border ? 0.f : static_cast<float>(i)};
}

template <class T, int V, int K, bool kInterleaved>
__device__ void gather_part(const GatherPart<T>& a, int block, unsigned char* shared) {
  using Acc = acc_t<T>;
  using Sum = Sums<Acc, V, K>;
  __shared__ RowSpan spans[kGatherRows<V> + 1];
  // Where adjacent threads have adjacent channels, results go to their places, else to shared memory.
  constexpr bool kStaged = !kInterleaved;
  constexpr int kRows = kGatherRows<V>, kAtOnce = kRowsAtOnce<V>;
  const Tile tile = a.tiling.tile(block);
  auto* const partial = reinterpret_cast<Acc*>(shared);
  auto* const result = reinterpret_cast<Acc*>(shared + a.partial_bytes);
  auto* const staged = reinterpret_cast<T*>(shared + a.partial_bytes + a.result_bytes);
  auto* const column_start = reinterpret_cast<int*>(reinterpret_cast<unsigned char*>(staged) + a.staged_bytes);
  auto* const lambdas = reinterpret_cast<float*>(column_start + 2 + a.tiling.width);
  const Axis& axis_y = a.resize.y;
  const Axis& axis_x = a.resize.x;
  if (!a.resize.copies) {
    if (threadIdx.x <= kRows) {
      const int r = static_cast<int>(threadIdx.x) - 1;
      spans[threadIdx.x] = row_span(axis_y, tile.y + r, r < tile.rows);
    }
    store_starts(axis_x, tile.x, tile.width, 0, column_start);
  }
  const int slots = a.columns.slots;
  const auto row_distance = static_cast<ptrdiff_t>(kStaged ? a.staging.row_pitch : a.out.stride_h);

#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    T* const out = place_in(a.out, tile.n, c * V, tile.x, tile.y);
    // Where the result of a channel of the group and a column goes, in the tile's first row.
    const auto place = [&](int channel, int x) {
      if constexpr (kStaged) {
        return staged + (Staging::start(out) + channel * a.staging.outer_pitch + x);
      } else {
        return out + (x * a.out.stride_w + channel * V);
      }
    };
    const auto write = [&](T* to, const Acc(&sum)[V]) {
      Acc scaled[V];
#pragma unroll
      for (int k = 0; k < V; ++k) scaled[k] = a.scale * sum[k];
      store_values<T, V>(to, scaled);
    };
    const auto channel_of = [&](int slot, int k) { return min(slot + k * slots, group - 1); };
    __syncthreads();
    if (a.resize.copies) {
      for (int i = threadIdx.x; i < a.columns.count(); i += blockDim.x) {
        int x, slot;
        a.columns.template split<kInterleaved>(i, x, slot);
        if (x >= tile.width || slot >= group) continue;
        const T* row = row_of(a.grad, tile.n, c * V, tile.x, tile.y);
        uint32_t at[K];
#pragma unroll
        for (int k = 0; k < K; ++k) at[k] = offset_in(a.grad, channel_of(slot, k) * V, x);
        T* to = place(slot, x);
        const ptrdiff_t apart = place(slot + slots, x) - to;
#pragma unroll 1
        for (int r = 0; r < tile.rows; ++r) {
          Acc v[K][V];
#pragma unroll
          for (int k = 0; k < K; ++k) load_values<T, V>(advanced(row, at[k]), v[k]);
          row = moved(row, a.next_row);
#pragma unroll
          for (int k = 0; k < K; ++k) {
            if (slot + k * slots < group) write(to + k * apart, v[k]);
          }
          to += row_distance;
        }
      }
    } else {
      const int last_x = column_start[tile.width + 1];
      int x = column_start[0];
      bool first_chunk = true, last_chunk;
      do {
        const int chunk = min(a.chunk, last_x - x);
        last_chunk = x + chunk == last_x;
        store_lambdas(axis_x, x, chunk, lambdas);
        // Along y.
        for (int i = threadIdx.x; i < a.columns.count(); i += blockDim.x) {
          int u, slot;
          a.columns.template split<kInterleaved>(i, u, slot);
          if (u >= chunk || slot >= group) continue;
          uint32_t at[K];
          Acc carried[K][V];
#pragma unroll
          for (int k = 0; k < K; ++k) {
            at[k] = offset_in(a.grad, channel_of(slot, k) * V, u);
#pragma unroll
            for (int j = 0; j < V; ++j) carried[k][j] = 0;
          }
          Acc* sums = partial + i * Sum::kColumn;
          int y = spans[0].begin;
          const T* row = row_of(a.grad, tile.n, c * V, x, y);
          auto position = static_cast<float>(y);
#pragma unroll 1
          for (int r = -1; r < kRows; ++r) {
            const RowSpan span = spans[r + 1];
            Acc upper[K][V], lower[K][V];
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) {
                upper[k][j] = carried[k][j];
                lower[k][j] = 0;
              }
            }
#pragma unroll 1
            for (; y < span.end; ++y) {
              const Acc below = exact_sub(exact_mul(span.slope, position), span.low), above = 1 - below;
              position += 1.f;
              Acc v[K][V];
#pragma unroll
              for (int k = 0; k < K; ++k) load_values<T, V>(advanced(row, at[k]), v[k]);
              row = moved(row, a.next_row);
#pragma unroll
              for (int k = 0; k < K; ++k) {
#pragma unroll
                for (int j = 0; j < V; ++j) {
                  upper[k][j] += above * v[k][j];
                  lower[k][j] += below * v[k][j];
                }
              }
            }
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) carried[k][j] = lower[k][j];
            }
            if (r < 0) continue;
#pragma unroll
            for (int k = 0; k < K; ++k) Sum::store(sums + k * kRows * V, upper[k]);
            sums += V;
          }
        }
        __syncthreads();
        // Along x: a thread takes kAtOnce rows of an input column of a channel.
        const int inputs = static_cast<int>(a.by_inputs.divisor);
        for (int i = threadIdx.x; i < inputs * (kRows / kAtOnce); i += blockDim.x) {
          int inner = i;
          const int first_row = a.by_inputs.split(inner) * kAtOnce;
          const int outer = a.by_inner.split(inner);
          const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
          if (j >= tile.width || channel >= group) continue;
          const int begin = max(column_start[j], x) - x, middle = column_start[j + 1] - x;
          const int end = min(column_start[j + 2] - x, chunk);
          if (begin >= end && !first_chunk && !last_chunk) continue;
          Acc* const kept = result + i * Sum::kResult;
          Acc sum[kAtOnce][V] = {};
          if (!first_chunk) {
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) Sum::load(kept + q * V, sum[q]);
          }
          int slot = channel, of_slot = first_row * V;
#pragma unroll
          for (int k = 1; k < K; ++k) {
            if (slot >= slots) {
              slot -= slots;
              of_slot += kRows * V;
            }
          }
          const int step = (kInterleaved ? slots : 1) * Sum::kColumn;
          const int column = kInterleaved ? begin * slots + slot : slot * a.columns.width + begin;
          const Acc* sums = partial + (column * Sum::kColumn + of_slot);
          for_each_reader<Acc>(lambdas, begin, middle, end, [&](Acc weight) {
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) {
              Acc v[V];
              Sum::load(sums + q * V, v);
#pragma unroll
              for (int l = 0; l < V; ++l) sum[q][l] += weight * v[l];
            }
            sums += step;
          });
          if (last_chunk) {
            T* to = place(channel, j) + first_row * row_distance;
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q, to += row_distance) {
              if (first_row + q < tile.rows) write(to, sum[q]);
            }
          } else {
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) Sum::store(kept + q * V, sum[q]);
          }
        }
        if (!last_chunk) __syncthreads();
        first_chunk = false;
        x += chunk;
      } while (!last_chunk);
    }
    if constexpr (kStaged) {
      __syncthreads();
      a.staging.store(staged, out, tile.rows, group, tile.width);
    }
  }
}

template <int V>
constexpr int kGatherThreads = V > 1 ? kBlockThreads / 2 : kBlockThreads;

template <class T, int V, int K, bool kInterleaved>
__global__ void __launch_bounds__(kGatherThreads<V>, V > 1 ? 6 : sizeof(T) == 8 ? 2 : 4)
    gather(const __grid_constant__ GatherArguments<T> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  int block = blockIdx.x;
  const int s = a.parts.part_of(block);
  const auto& part = a.part[s];
  if (part.copy.bytes > 0) return part.copy.run(block);
  gather_part<T, V, K, kInterleaved>(part, block, shared);
}

}  // namespace a2s
