// The CUDA kernel of Interp's adjoint, for several maps in one launch. Element (i, j) of a map's gradient is the sum
// over the outputs (y, x) that read it of their weight times the value that they pass back.
//
// The adjoint is separable. A block makes rows x columns of the gradient, group by group of its channels. A thread goes
// down a column of outputs once, for K channels: the sums that a row passes to the two input rows around it are kept in
// registers, and a finished sum goes to shared memory. From there it is gathered along x. Columns come in chunks, so
// that any size fits. Several shifts along x share the sums along y: result d of kShifts gathers the values of column
// x + kShifts / 2 - d in place of those of x.
//
// The values that outputs pass back are a Value:
//   rows(n, c, x, y)       pointers to channel c and column x in row y of its maps;  next(rows)   those of the next row
//   column(c, first_x, x)  32-bit offsets of channel c and column first_x + x from rows at column first_x
//   load(rows, column, v)  V adjacent channels
// and, if kWeighted, a factor that all channels of a pixel share:
//   pixel(x)               32-bit offset of a column's;  weight(rows, pixel)
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

constexpr int kResultBytes = 9 * 1024;  // sums of a tile's results, where its columns come in chunks

// V sums in shared memory, as pieces of 16 bytes that lie `pitch` values apart, so that threads next to each other
// access adjacent pieces.
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
  int group;             // channels at once
  int chunk;             // output columns at once
  int pitch;             // of a row of partial sums, or of one piece of each
  int partial_bytes, result_bytes, staged_bytes;
  Places columns;               // that are summed along y
  Divisor by_inner, by_inputs;  // of the inputs that are gathered along x
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

template <class T, int V, int K, int kShifts, bool kInterleaved, class Value>
__device__ void gather_part(const GatherPart<T, Value>& a, int block, unsigned char* shared) {
  using Acc = acc_t<T>;
  using Sum = Sums<Acc, V>;
  __shared__ RowSpan spans[gathered_rows<V> + 1];
  // Where adjacent threads have adjacent channels, results go to their places, else to shared memory.
  constexpr bool kStaged = !kInterleaved;
  constexpr int kHalo = kShifts / 2, kRows = gathered_rows<V>;
  constexpr int kRowsAtOnce = V == 1 ? kRows / (kShifts == 1 ? 1 : 2) : kShifts == 1 ? 2 : 1;
  constexpr int kRowGroups = kRows / kRowsAtOnce;
  const Tile tile = a.tiling.tile(block);
  auto* const partial = reinterpret_cast<Acc*>(shared);
  auto* const result = reinterpret_cast<Acc*>(shared + a.partial_bytes);
  unsigned char* const staging = shared + a.partial_bytes + a.result_bytes;
  auto* const column_start = reinterpret_cast<int*>(staging + kShifts * a.staged_bytes);
  auto* const lambdas = reinterpret_cast<float*>(column_start + 2 + a.tiling.width);
  const Axis& axis_y = a.resize.y;
  const Axis& axis_x = a.resize.x;
  if (!a.resize.copies) {
    if (threadIdx.x <= kRows) {
      const int r = static_cast<int>(threadIdx.x) - 1;
      spans[threadIdx.x] = row_span(axis_y, tile.y + r, r < tile.rows);
    }
    for (int k = threadIdx.x; k < tile.width + 2; k += blockDim.x) {
      column_start[k] = first_output(axis_x, tile.x - 1 + k);
    }
  }
  const int slots = a.columns.slots;
  const int row_pitch = a.pitch * Sum::kPieces;
  const auto row_distance = static_cast<ptrdiff_t>(kStaged ? a.staging.row_pitch : a.out.stride_h);

#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    T* const out = place_in(a.out, tile.n, c * V, tile.x, tile.y);
    const auto result_of = [&](int shift) { return out + shift * a.shift_stride; };
    const auto staged_of = [&](int shift) { return reinterpret_cast<T*>(staging + shift * a.staged_bytes); };
    // Where the result of a channel of the group and a column goes, in the tile's first row.
    const auto place = [&](int shift, int channel, int x) {
      if constexpr (kStaged) {
        return staged_of(shift) + (Staging::start(result_of(shift)) + channel * a.staging.outer_pitch + x);
      } else {
        return result_of(shift) + (x * a.out.stride_w + channel * V);
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
#pragma unroll 1
        for (int d = 0; d < kShifts; ++d) {
          auto rows = a.value.rows(tile.n, c * V, tile.x - kHalo, tile.y);
          decltype(a.value.column(0, 0, 0)) at[K];
#pragma unroll
          for (int k = 0; k < K; ++k) {
            at[k] = a.value.column(channel_of(slot, k) * V, tile.x - kHalo, x + 2 * kHalo - d);
          }
          [[maybe_unused]] uint32_t pixel = 0;
          if constexpr (Value::kWeighted) pixel = a.value.pixel(x);
          T* to = place(d, slot, x);
          const ptrdiff_t apart = place(d, slot + slots, x) - to;
#pragma unroll 1
          for (int r = 0; r < tile.rows; ++r) {
            Acc v[K][V];
#pragma unroll
            for (int k = 0; k < K; ++k) a.value.template load<V>(rows, at[k], v[k]);
            if constexpr (Value::kWeighted) {
              const Acc weight = a.value.weight(rows, pixel);
#pragma unroll
              for (int k = 0; k < K; ++k) v[k][0] *= weight;
            }
            a.value.next(rows);
#pragma unroll
            for (int k = 0; k < K; ++k) {
              if (slot + k * slots < group) write(to + k * apart, v[k]);
            }
            to += row_distance;
          }
        }
      }
    } else {
      const int last_x = column_start[tile.width + 1];
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
        for (int i = threadIdx.x; i < a.columns.count(); i += blockDim.x) {
          int u, slot;
          a.columns.template split<kInterleaved>(i, u, slot);
          if (u >= window || slot >= group) continue;
          decltype(a.value.column(0, 0, 0)) at[K];
          Acc carried[K][V];
#pragma unroll
          for (int k = 0; k < K; ++k) {
            at[k] = a.value.column(channel_of(slot, k) * V, x - kHalo, u);
#pragma unroll
            for (int j = 0; j < V; ++j) carried[k][j] = 0;
          }
          [[maybe_unused]] uint32_t pixel = 0;
          if constexpr (Value::kWeighted) pixel = a.value.pixel(u);
          const int apart = kInterleaved ? slots * Sum::kPiece : slots * a.columns.width;
          Acc* sums = partial + (kInterleaved ? (u * a.group + slot) * Sum::kPiece : slot * a.columns.width + u);
          int y = spans[0].begin;
          auto rows = a.value.rows(tile.n, c * V, x - kHalo, y);
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
              Acc below = exact_sub(exact_mul(span.slope, position), span.low), above = 1 - below;
              position += 1.f;
              if constexpr (Value::kWeighted) {
                const Acc weight = a.value.weight(rows, pixel);
                above *= weight;
                below *= weight;
              }
              Acc v[K][V];
#pragma unroll
              for (int k = 0; k < K; ++k) a.value.template load<V>(rows, at[k], v[k]);
              a.value.next(rows);
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
            for (int k = 0; k < K; ++k) {
              if (slot + k * slots < group) Sum::store(sums + k * apart, a.pitch, upper[k]);
            }
            sums += row_pitch;
          }
        }
        __syncthreads();
        // Along x: a thread takes kRowsAtOnce rows of an input column of a channel.
        const int inputs = static_cast<int>(a.by_inputs.divisor);
        for (int i = threadIdx.x; i < inputs * kRowGroups; i += blockDim.x) {
          int inner = i;
          const int first_row = a.by_inputs.split(inner) * kRowsAtOnce;
          const int outer = a.by_inner.split(inner);
          const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
          if (j >= tile.width || channel >= group) continue;
          const int begin = max(column_start[j], x) - x, middle = column_start[j + 1] - x;
          const int end = min(column_start[j + 2] - x, chunk);
          if (begin >= end && !first_chunk && !last_chunk) continue;
          Acc sum[kShifts][kRowsAtOnce][V];
          const auto kept = [&](int shift, int q) {
            return result + ((shift * kRowsAtOnce + q) * Sum::kPieces * inputs * kRowGroups + i) * Sum::kPiece;
          };
          const int kept_pitch = inputs * kRowGroups * Sum::kPiece;
#pragma unroll
          for (int d = 0; d < kShifts; ++d) {
#pragma unroll
            for (int q = 0; q < kRowsAtOnce; ++q) {
              for (int k = 0; k < V; ++k) sum[d][q][k] = 0;
              if (!first_chunk) Sum::load(kept(d, q), kept_pitch, sum[d][q]);
            }
          }
          const int step = kInterleaved ? a.group * Sum::kPiece : 1;
          const Acc* sums = partial + first_row * row_pitch +
                            (kInterleaved ? begin * step + channel * Sum::kPiece : channel * a.columns.width + begin);
#pragma unroll 1
          for (int k = begin; k < end; ++k) {
            const Acc lambda = lambdas[k], weight = k < middle ? lambda : 1 - lambda;
#pragma unroll
            for (int d = 0; d < kShifts; ++d) {
#pragma unroll
              for (int q = 0; q < kRowsAtOnce; ++q) {
                Acc v[V];
                Sum::load(sums + (q * row_pitch + (2 * kHalo - d) * step), a.pitch, v);
#pragma unroll
                for (int l = 0; l < V; ++l) sum[d][q][l] += weight * v[l];
              }
            }
            sums += step;
          }
#pragma unroll
          for (int d = 0; d < kShifts; ++d) {
            T* const to = place(d, channel, j) + first_row * row_distance;
#pragma unroll
            for (int q = 0; q < kRowsAtOnce; ++q) {
              if (last_chunk) {
                if (first_row + q < tile.rows) write(to + q * row_distance, sum[d][q]);
              } else {
                Sum::store(kept(d, q), kept_pitch, sum[d][q]);
              }
            }
          }
        }
        if (!last_chunk) __syncthreads();
        first_chunk = false;
        x += chunk;
      } while (!last_chunk);
    }
    if constexpr (kStaged) {
      __syncthreads();
#pragma unroll 1
      for (int d = 0; d < kShifts; ++d) a.staging.store(staged_of(d), result_of(d), tile.rows, group, tile.width);
    }
  }
}

template <int V>
constexpr int kGatherThreads = V > 1 ? kBlockThreads / 2 : kBlockThreads;

template <class T, int V, int K, int kShifts, bool kInterleaved, class Value>
__global__ void __launch_bounds__(kGatherThreads<V>, V > 1 ? 6 : sizeof(T) == 8 ? 2 : 3)
    gather(const __grid_constant__ GatherArguments<T, Value> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int block = blockIdx.x;
  int s = 0;
#pragma unroll
  for (int t = 1; t < kMaxScales; ++t) s += block >= a.first_block[t];
  gather_part<T, V, K, kShifts, kInterleaved>(a.part[s], block - a.first_block[s], shared);
}

// Cuts the part into tiles for blocks of at most `threads`; returns the bytes of shared memory that they need.
template <int V, int K, int kShifts, bool kInterleaved, class T, class Value>
int plan_gather(GatherPart<T, Value>& a, int threads) {
  using Sum = Sums<acc_t<T>, V>;
  constexpr int acc = sizeof(acc_t<T>), halo = kShifts / 2, kRows = gathered_rows<V>;
  const Map<T>& out = a.out;
  const Axis& axis = a.resize.x;
  const int64_t channels = out.c / V, limit = std::min(channels, std::max<int64_t>(1, a.value.channel_limit() / V));
  // Columns of outputs that `inputs` columns gather.
  const auto window = [&](int64_t inputs) {
    if (a.resize.copies) return inputs;
    const double most = axis.ratio > 0 ? (inputs + 1) / static_cast<double>(axis.ratio) + 2 : axis.out;
    return (most < axis.out ? static_cast<int64_t>(most) : axis.out) + 2 * halo;
  };
  // Where not all columns that a tile gathers fit into shared memory, they come in chunks.
  const int64_t all_slots = ceil_div(limit, K), sums = kResultBytes / (kRows * V * kShifts * acc);
  int64_t width = 1, slots;
  if (kInterleaved) {
    slots = balanced(all_slots, V > 1 ? 8 : 16);
    const int64_t most = threads / slots;
    if (V > 1 && !a.resize.copies) {
      while (width < std::min<int64_t>(out.w, most) && window(width + 1) <= most) ++width;
    } else {
      width = balanced(out.w, std::max<int64_t>(1, sums / (K * slots)));
    }
    a.chunk = a.resize.copies ? width : balanced(window(width), most);
  } else {
    const bool whole = window(out.w) <= threads;
    const int64_t results = whole ? 16 * 1024 / (kRows * kShifts * sizeof(T)) : sums;
    width = balanced(out.w, results / K);
    a.chunk = a.resize.copies ? width : balanced(window(width), threads);
    slots = Places::planar(a.chunk, std::clamp<int64_t>(results / (K * width), 1, all_slots)).slots;
    if (slots > 1) slots = std::min<int64_t>(slots, std::max(1, threads / a.chunk));
  }
  a.group = static_cast<int>(std::min(K * slots, limit));
  int64_t rows = kRows, at_once = ceil_div(channels, a.group) * a.group;
  const auto cut = [&] { a.tiling = Tiling(out.n, out.h, out.w, channels, rows, width, at_once); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && at_once > a.group; cut()) at_once -= a.group;
  for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
  a.columns = Places(a.chunk, slots, kInterleaved);
  const bool in_chunks = a.chunk < window(width);
  if (!a.resize.copies) a.chunk -= 2 * halo;
  a.by_inner = Divisor(kInterleaved ? a.group : a.tiling.width);
  a.by_inputs = Divisor(int64_t{a.tiling.width} * a.group);
  a.pitch = a.columns.width * a.group * Sum::kPiece;
  const auto round = [](int64_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16); };
  if (!a.resize.copies) a.partial_bytes = round(int64_t{kRows} * a.pitch * Sum::kPieces * acc);
  if (!a.resize.copies && in_chunks) {
    a.result_bytes = round(int64_t{kShifts} * kRows * a.tiling.width * a.group * V * acc);
  }
  if (!kInterleaved) {
    a.staging = Staging(out, a.tiling.rows, a.group, a.tiling.width, false);
    a.staged_bytes = a.staging.template bytes<T>();
  }
  return a.partial_bytes + a.result_bytes + kShifts * a.staged_bytes + 4 * (2 + a.tiling.width + a.chunk);
}

// Gathers all `grads_in`, in one launch; value_of(s) is the Value that outputs pass back to map s. With several shifts
// a map's channels are those of the first shift, then those of the next.
template <class T, int V, bool kInterleaved, int kShifts = 1, class ValueOf>
void launch_gather(const Tensor& on, const std::vector<Tensor>& grads_in, int64_t height, int64_t width,
                   acc_t<T> scale, const ValueOf& value_of) {
  using Value = decltype(value_of(0));
  constexpr int K = V > 1 || sizeof(T) == 8 || kShifts > 1 ? 1 : 3, most = kGatherThreads<V>;
  GatherArguments<T, Value> a{};
  int64_t blocks = 0;
  int shared_bytes = 0, threads = 32;
  for (size_t s = 0; s < grads_in.size(); ++s) {
    auto& part = a.part[s];
    const Map<T> all = map_of<T>(grads_in[s]);
    part.out = channels_of(all, 0, all.c / kShifts);
    part.shift_stride = part.out.c * all.stride_c;
    part.value = value_of(static_cast<int>(s));
    part.resize = Resize(part.out.h, part.out.w, height, width);
    part.scale = scale;
    shared_bytes = std::max(shared_bytes, plan_gather<V, K, kShifts, kInterleaved>(part, most));
    threads = std::max(threads, std::min(most, part.columns.threads()));
    a.first_block[s] = static_cast<int>(blocks);
    blocks += part.tiling.blocks();
    check_blocks(blocks);
  }
  for (size_t s = grads_in.size(); s <= kMaxScales; ++s) a.first_block[s] = static_cast<int>(blocks);
  launch(on, blocks, threads, shared_bytes, gather<T, V, K, kShifts, kInterleaved, Value>, a);
}

// The gradient itself.
template <class T>
struct PlainGrad {
  static constexpr bool kWeighted = false;
  Map<const T> grad;
  int64_t next_row = bytes_between_rows(grad);

  int64_t channel_limit() const { return a2s::channel_limit(grad); }
  __device__ const T* rows(int n, int c, int x, int y) const { return row_of(grad, n, c, x, y); }
  __device__ void next(const T*& row) const { row = moved(row, next_row); }
  __device__ uint32_t column(int c, int, int x) const { return offset_in(grad, c, x); }
  template <int V>
  __device__ void load(const T* row, uint32_t column, acc_t<T> (&v)[V]) const {
    load_values<T, V>(advanced(row, column), v);
  }
};

}  // namespace a2s
