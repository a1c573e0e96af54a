// The CUDA kernel that gathers the gradients of two resized maps, and of one that keeps its size, in one pass over what
// the outputs pass back. Neither map is larger than the outputs, or far smaller.
//
// A block takes a tile of the outputs. Of each map it makes the pixels whose first output (first_output) lies in the
// tile, from all outputs that read one of them: the tile and the few rows and columns beside it. A thread goes down a
// column of outputs, for K channels. The sums for the two rows of each map around an output are kept in registers; a
// finished one goes to shared memory. As soon as one of the maps has kFinishedRows there, these are gathered along x,
// and the threads go on.
//
// The values that outputs pass back are a Value, as in interp/gather.h, but for all maps at once:
//   read(rows, column)   all that is read of a channel of an output
//   passed(read, s)      what the output passes to map s
#pragma once

#include "../interp/gather.h"

namespace a2s {

constexpr int kFinishedRows = 4;
constexpr int kOutputRows = 64;  // of a tile, at most

struct Span {
  int begin, end;
  A2S_HD int count() const { return end - begin; }
};

// The inputs whose first output is one of outputs [first, first + count).
A2S_HD Span inputs_of(const Axis& axis, int64_t first, int64_t count) {
  const auto begin = [&](int64_t o) {
    return static_cast<int>(o <= 0 ? 0 : o >= axis.out ? axis.in : axis.low(o - 1) + 1);
  };
  return {begin(first), begin(first + count)};
}

// How a row of outputs reads a map: `row` and the one below, from the tile's first row of the map.
template <class Acc>
struct alignas(16) OutputRow {
  Acc above, below;
  int row, padding;
};

template <class T>
struct PairedMap {
  Map<T> out;
  Resize resize;  // of the forward pass: from `out` to the outputs
  int s;          // its number among the scores
  int columns;    // of a tile, at most
  Divisor by_inner;
};

template <class T, class Value>
struct GatherPairArguments {
  PairedMap<T> maps[2];
  Map<T> copied;  // of the size of the outputs; its data is null if there is none
  int copied_s;
  int64_t copied_row, copied_slots;  // bytes from a value to that of the next row, and of the thread's next channel
  Value value;
  acc_t<T> scale;
  Tiling tiling;  // of the outputs
  Places places;  // columns of outputs that a tile's pixels read, and slots of channels
  int group;      // channels at once
  int rows_at, sums_at, next_sums, starts_at, next_starts, lambdas_at, next_lambdas;  // in shared memory
};

template <class T>
constexpr int kPairChannels = sizeof(T) == 8 ? 1 : 3;

template <class T, bool kInterleaved, class Value>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : 4)
    gather_pair(const __grid_constant__ GatherPairArguments<T, Value> a) {
  using Acc = acc_t<T>;
  constexpr int K = kPairChannels<T>, kPitch = K * kFinishedRows | 1;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Span inputs_x[2], inputs_y[2], readers_x[2], readers_y[2];
  __shared__ Tile tile;  // not in registers, which the sums need
  __shared__ Span finished[2];
  __shared__ T* results[2];  // the first row that is not finished
  if (threadIdx.x == 0) tile = a.tiling.tile(blockIdx.x);
  __syncthreads();
  if (threadIdx.x < 2) {
    const int s = threadIdx.x;
    const auto readers = [](const Axis& axis, Span inputs) {
      return Span{first_output(axis, inputs.begin - 1), first_output(axis, inputs.end)};
    };
    const Resize& resize = a.maps[s].resize;
    inputs_x[s] = inputs_of(resize.x, tile.x, tile.width);
    inputs_y[s] = inputs_of(resize.y, tile.y, tile.rows);
    readers_x[s] = readers(resize.x, inputs_x[s]);
    readers_y[s] = readers(resize.y, inputs_y[s]);
  }
  __syncthreads();
  // Besides the tile itself, which a copied map needs.
  const auto all = [](const Span (&readers)[2], int first, int count) {
    return Span{min(min(readers[0].begin, readers[1].begin), first),
                max(max(readers[0].end, readers[1].end), first + count)};
  };
  const Span x = all(readers_x, tile.x, tile.width), y = all(readers_y, tile.y, tile.rows);
  auto* const output_rows = reinterpret_cast<OutputRow<Acc>*>(shared + a.rows_at);
  const auto sums_of = [&](int s) { return reinterpret_cast<Acc*>(shared + (a.sums_at + s * a.next_sums)); };
  const auto starts_of = [&](int s) { return reinterpret_cast<int*>(shared + (a.starts_at + s * a.next_starts)); };
  const auto lambdas_of = [&](int s) { return reinterpret_cast<float*>(shared + (a.lambdas_at + s * a.next_lambdas)); };
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const Resize& resize = a.maps[s].resize;
    for (int k = threadIdx.x; k <= y.count(); k += blockDim.x) {
      const Tap tap = tap_of(resize.y, y.begin + k);
      const Acc below = tap.low == tap.high ? 0.f : tap.lambda;
      // A step after the last row finishes the map's last rows.
      const int row = k == y.count() ? inputs_y[s].end : min(tap.low, inputs_y[s].end);
      output_rows[2 * k + s] = {1 - below, below, row - inputs_y[s].begin, 0};
    }
    for (int k = threadIdx.x; k < inputs_x[s].count() + 2; k += blockDim.x) {
      starts_of(s)[k] = first_output(resize.x, inputs_x[s].begin - 1 + k) - x.begin;
    }
    for (int k = threadIdx.x; k < x.count(); k += blockDim.x) {
      const Tap tap = tap_of(resize.x, x.begin + k);
      lambdas_of(s)[k] = tap.low == tap.high ? 0.f : tap.lambda;
    }
    // Rows that are not finished are gathered with the others, and left.
    for (int k = threadIdx.x; k < a.next_sums / static_cast<int>(sizeof(Acc)); k += blockDim.x) sums_of(s)[k] = 0;
  }

  const int slots = a.places.slots;
#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    int place = min(static_cast<int>(threadIdx.x), a.places.count() - 1), column, slot;
    a.places.template split<kInterleaved>(place, column, slot);
    const int own_column = column + x.begin - tile.x;
    const bool owns = a.copied.data && static_cast<int>(threadIdx.x) < a.places.count() && own_column >= 0 &&
                      own_column < tile.width;
    column = min(column, x.count() - 1);
    // Of the thread's channels, the last ones may not be in the group.
    const int here = (group - slot + slots - 1) / slots;
    decltype(a.value.column(0, 0, 0)) at[K];
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] = a.value.column(min(slot + k * slots, group - 1), x.begin, column);
    auto rows = a.value.rows(tile.n, c, x.begin, y.begin);
    T* copied = place_in(a.copied, tile.n, c + slot, tile.x + own_column, tile.y);
    Acc upper[2][K] = {}, lower[2][K] = {};
    int row[2];  // that `upper` is for
    __syncthreads();
    if (threadIdx.x < 2) {
      const int s = threadIdx.x;
      finished[s] = {0, 0};
      results[s] = place_in(a.maps[s].out, tile.n, c, inputs_x[s].begin, inputs_y[s].begin);
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) row[s] = output_rows[s].row;
    int step = 0;
    bool full;
    do {
      __syncthreads();
#pragma unroll 1
      while (true) {
        const OutputRow<Acc>* const now = output_rows + 2 * step;
        full = false;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll 1
          for (const int reached = now[s].row; row[s] < reached; ++row[s]) {
            const int kept = row[s] - finished[s].begin;
            if (kept == kFinishedRows) {
              full = true;
              break;
            }
            Acc* const sums = sums_of(s) + (threadIdx.x * kPitch + kept);
            if (kept >= 0) {
#pragma unroll
              for (int k = 0; k < K; ++k) sums[k * kFinishedRows] = upper[s][k];
            }
#pragma unroll
            for (int k = 0; k < K; ++k) {
              upper[s][k] = lower[s][k];
              lower[s][k] = 0;
            }
          }
        }
        if (full || step == y.count()) break;
        typename Value::Read read[K];
#pragma unroll
        for (int k = 0; k < K; ++k) read[k] = a.value.read(rows, at[k]);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const Acc above = now[s].above, below = now[s].below;
#pragma unroll
          for (int k = 0; k < K; ++k) {
            const Acc value = a.value.passed(read[k], a.maps[s].s);
            upper[s][k] += above * value;
            lower[s][k] += below * value;
          }
        }
        if (owns && static_cast<unsigned>(step + y.begin - tile.y) < static_cast<unsigned>(tile.rows)) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            const Acc value = a.value.passed(read[k], a.copied_s);
            if (k < here) *moved(copied, k * a.copied_slots) = static_cast<T>(a.scale * value);
          }
          copied = moved(copied, a.copied_row);
        }
        a.value.next(rows);
        ++step;
      }
      if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < 2; ++s) finished[s].end = max(row[s], 0);
      }
      __syncthreads();
      // Along x: a thread takes the finished rows of an input column of a channel.
#pragma unroll 1
      for (int s = 0; s < 2; ++s) {
        const PairedMap<T>& map = a.maps[s];
        const int count = finished[s].count(), columns = inputs_x[s].count();
        if (count == 0) continue;
        T* const first = results[s];
        const float* const lambdas = lambdas_of(s);
        for (int i = threadIdx.x; i < map.columns * a.group; i += blockDim.x) {
          int inner = i;
          const int outer = map.by_inner.split(inner);
          const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
          if (j >= columns || channel >= group) continue;
          const int* const starts = starts_of(s) + j;
          const int begin = starts[0], middle = starts[1], end = starts[2];
          int of_slot = channel, k = 0;
#pragma unroll
          for (int next = 1; next < K; ++next) {
            if (of_slot >= slots) {
              of_slot -= slots;
              k += kFinishedRows;
            }
          }
          const int at = kInterleaved ? begin * slots + of_slot : of_slot * a.places.width + begin;
          const Acc* sums = sums_of(s) + (at * kPitch + k);
          Acc sum[kFinishedRows] = {};
#pragma unroll 1
          for (int u = begin; u < end; ++u) {
            const Acc lambda = lambdas[u], weight = u < middle ? lambda : 1 - lambda;
#pragma unroll
            for (int q = 0; q < kFinishedRows; ++q) sum[q] += weight * sums[q];
            sums += (kInterleaved ? slots : 1) * kPitch;
          }
          T* to = first + (kInterleaved ? j * static_cast<int>(map.out.stride_w) + channel
                                        : channel * map.out.stride_c + j);
#pragma unroll
          for (int q = 0; q < kFinishedRows; ++q) {
            if (q < count) *to = static_cast<T>(a.scale * sum[q]);
            to += map.out.stride_h;
          }
        }
      }
      __syncthreads();
      if (threadIdx.x < 2) {
        const int s = threadIdx.x;
        results[s] += finished[s].count() * a.maps[s].out.stride_h;
        finished[s].begin = finished[s].end;
      }
    } while (full);
  }
}

// Whether a pair may have the map of that axis: it is not larger than the outputs, and not far smaller.
inline bool pairs(const Axis& axis) {
  return axis.in == axis.out || (axis.in < axis.out && axis.ratio > 0 && axis.inverse <= 16);
}

// Gathers two maps that are resized, and one that is not if the data of `copied` is not null. Indices are the maps'
// numbers among the scores.
template <class T, bool kInterleaved, class Value>
void launch_gather_pair(const Tensor& on, const Map<T> (&maps)[2], const int (&index)[2], const Map<T>& copied,
                        int copied_index, int64_t height, int64_t width, acc_t<T> scale, const Value& value) {
  using Acc = acc_t<T>;
  constexpr int K = kPairChannels<T>;
  GatherPairArguments<T, Value> a{};
  double longest_y = 0, longest_x = 0;  // outputs between inputs
  for (int s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    map.out = maps[s];
    map.resize = Resize(map.out.h, map.out.w, height, width);
    map.s = index[s];
    longest_y = std::max<double>(longest_y, map.resize.y.inverse);
    longest_x = std::max<double>(longest_x, map.resize.x.inverse);
  }
  // Outputs beside a tile that read its pixels, at most: one more on each side than the inverse ratio, and rounding.
  const int64_t halo_y = 2 * static_cast<int64_t>(longest_y) + 4, halo_x = 2 * static_cast<int64_t>(longest_x) + 4;
  a.value = value;
  a.scale = scale;
  const Map<T>& out = maps[0];
  const int64_t limit = std::min(out.c, value.channel_limit()), all_slots = ceil_div(limit, K);
  const int64_t threads = sizeof(T) == 8 ? 128 : kBlockThreads;
  // The widest tiles for blocks with that many slots; 0 if there are none.
  const auto columns_of = [&](int64_t slots) {
    const int64_t most = threads / slots;
    return most >= width ? width : most <= halo_x ? 0 : int64_t{balanced(width, most - halo_x)};
  };
  const auto window = [&](int64_t columns) { return std::min(width, columns + halo_x); };
  int64_t columns = columns_of(1);
  if (kInterleaved) {
    // Few threads wait, and adjacent ones share sectors.
    int64_t slots = 1;
    double best = 0;
    for (int64_t tried = 1; tried <= std::min<int64_t>(all_slots, 32); ++tried) {
      const int64_t wide = columns_of(tried);
      if (wide == 0) break;
      const int64_t blocks = ceil_div(width, wide) * ceil_div(out.c, K * tried);
      const double good = tried / ((tried + 2.) * blocks * Places(window(wide), tried, true).threads());
      if (good < best) continue;
      best = good;
      columns = wide;
      slots = tried;
    }
    a.places = Places(window(columns), slots, true);
  } else {
    a.places = Places::planar(window(columns), std::clamp<int64_t>(threads / window(columns), 1, all_slots));
  }
  a.group = static_cast<int>(std::min<int64_t>(K * a.places.slots, limit));
  int64_t rows = std::min<int64_t>(height, kOutputRows), at_once = ceil_div(out.c, a.group) * a.group;
  const auto cut = [&] { a.tiling = Tiling(out.n, height, width, out.c, rows, columns, at_once); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && at_once > a.group; cut()) at_once -= a.group;
  for (; a.tiling.blocks() < kBlocksWanted && rows > 8; cut()) --rows;  // of fewer, many would be read twice
  for (PairedMap<T>& map : a.maps) {
    for (int64_t x = 0; x < width; x += a.tiling.width) {
      map.columns = std::max(map.columns, inputs_of(map.resize.x, x, a.tiling.width).count());
    }
    map.by_inner = Divisor(kInterleaved ? a.group : map.columns);
  }
  a.copied = copied;
  a.copied_s = copied_index;
  a.copied_row = bytes_between_rows(copied);
  a.copied_slots = a.places.slots * copied.stride_c * static_cast<int64_t>(sizeof(T));
  int bytes = 0;
  const auto take = [&](int64_t more, int& each) {
    const int at = bytes;
    each = static_cast<int>(ceil_div(more, 16) * 16);
    bytes += 2 * each;
    return at;
  };
  int each_row;
  a.rows_at = take((std::min(height, a.tiling.rows + halo_y) + 1) * sizeof(OutputRow<Acc>), each_row);
  a.sums_at = take(int64_t{a.places.threads()} * (K * kFinishedRows | 1) * sizeof(Acc), a.next_sums);
  a.starts_at = take((std::max(a.maps[0].columns, a.maps[1].columns) + 2) * sizeof(int), a.next_starts);
  a.lambdas_at = take(a.places.width * sizeof(float), a.next_lambdas);
  launch(on, a.tiling.blocks(), a.places.threads(), bytes, gather_pair<T, kInterleaved, Value>, a);
}

}  // namespace a2s
