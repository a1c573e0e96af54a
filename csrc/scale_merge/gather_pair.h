// The CUDA kernel that gathers the gradients of two resized maps, and of one that keeps its size, in one pass over what
// the outputs pass back. Neither map is larger than the outputs, or far smaller.
//
// A block takes a tile of the outputs. Of each map it makes the pixels whose first output (first_output) lies in the
// tile, from all outputs that read one of them: the tile and the few rows and columns beside it. A thread goes down a
// column of outputs, for K channels. The sums for the two rows of each map around an output are kept in registers; a
// finished one goes to shared memory. As soon as a map has kFinishedRows there, these are gathered along x: a thread
// takes those of K channels of an input column.
//
// The values that outputs pass back are a Value:
//   place(n, c, x, y)     pointers to all that is read of an output;  down(place)   those of the next row
//   further(c)            32-bit offsets from there to the output c channels further
//   read(place, offsets, v)  all that is read of the outputs at some offsets;  passed(v, s)  what one passes to map s
// and, if kWeighted, a factor of each map that all channels of a pixel share:
//   weight(n, s, x, y)    a pointer to it in the map `weights`;  weight_row   bytes to that of the next row
#pragma once

#include <tuple>

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

// How a row of outputs reads the two maps: the weight of the lower of the rows around it. It is negative, or -0, where
// that is no longer the row that the outputs above read.
struct alignas(8) OutputRow {
  float below[2];
};

template <class T>
struct PairedMap {
  Map<T> out;
  Resize resize;  // of the forward pass: from `out` to the outputs
  int s;          // its number among the scores
  int columns;    // of a tile, at most; 0 if there is no such map
  Divisor by_inner;
};

template <class T, class Value>
struct GatherPairArguments {
  PairedMap<T> maps[2];
  Map<T> copied;  // of the size of the outputs; its data is null if there is none
  int copied_s;
  int64_t copied_row, copied_slots;  // bytes from a value to that of the next row, and of the thread's next channel
  Value value;
  int64_t next_weight;  // bytes between the weights of the two maps
  float scale;
  Tiling tiling;  // of the outputs
  Places places;  // columns of outputs that a tile's pixels read, and slots of channels
  int group;      // channels at once
  int rows_at, sums_at, next_sums, starts_at, next_starts, lambdas_at, next_lambdas;  // in shared memory
};

constexpr int kPairThreads = 224;  // at most: four such blocks leave a thread 72 registers
constexpr int kPairChannels = 3;
// Distance between the sums of adjacent threads: odd, so that they are in different banks.
constexpr int kPairPitch = kPairChannels * kFinishedRows | 1;

template <class T, bool kInterleaved, class Value>
__global__ void __launch_bounds__(kPairThreads, 4)
    gather_pair(const __grid_constant__ GatherPairArguments<T, Value> a) {
  constexpr int K = kPairChannels;
  extern __shared__ __align__(16) unsigned char shared[];
  // Not in registers, which the sums need.
  __shared__ Span inputs_x[2], inputs_y[2], readers_x[2], readers_y[2], x, y;
  __shared__ Tile tile;
  __shared__ int first_row[2];  // of each map that the first output reads, from the tile's first
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
  if (threadIdx.x == 0) {
    // Besides the tile itself, which a copied map needs.
    const auto all = [](const Span (&readers)[2], int first, int count) {
      return Span{min(min(readers[0].begin, readers[1].begin), first),
                  max(max(readers[0].end, readers[1].end), first + count)};
    };
    x = all(readers_x, tile.x, tile.width);
    y = all(readers_y, tile.y, tile.rows);
  }
  __syncthreads();
  auto* const output_rows = reinterpret_cast<OutputRow*>(shared + a.rows_at);
  const auto sums_of = [&](int s) { return reinterpret_cast<float*>(shared + (a.sums_at + s * a.next_sums)) + 1; };
  const auto starts_of = [&](int s) { return reinterpret_cast<int*>(shared + (a.starts_at + s * a.next_starts)); };
  const auto lambdas_of = [&](int s) { return reinterpret_cast<float*>(shared + (a.lambdas_at + s * a.next_lambdas)); };
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const Resize& resize = a.maps[s].resize;
    // A step after the last row finishes the map's last row.
    const auto row = [&](int o) {
      return (o == y.end ? inputs_y[s].end : min(tap_of(resize.y, o).low, inputs_y[s].end)) - inputs_y[s].begin;
    };
    for (int k = threadIdx.x; k <= y.count(); k += blockDim.x) {
      const Tap tap = tap_of(resize.y, y.begin + k);
      const float below = tap.low == tap.high ? 0.f : tap.lambda;
      output_rows[k].below[s] = k > 0 && row(y.begin + k) > row(y.begin + k - 1) ? -below : below;
    }
    if (threadIdx.x == 0) first_row[s] = row(y.begin);
    store_starts(resize.x, inputs_x[s].begin, inputs_x[s].count(), x.begin, starts_of(s));
    store_lambdas(resize.x, x.begin, x.count(), lambdas_of(s));
    // Rows that are not finished are gathered with the others, and left.
    for (int k = threadIdx.x; k < a.next_sums / static_cast<int>(sizeof(float)); k += blockDim.x) sums_of(s)[k - 1] = 0;
  }

  const int slots = a.places.slots;
#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    int place = min(static_cast<int>(threadIdx.x), a.places.count() - 1), column, slot;
    a.places.template split<kInterleaved>(place, column, slot);
    const int own_column = column + x.begin - tile.x;
    const bool owns = !Value::kWeighted && a.copied.data && static_cast<int>(threadIdx.x) < a.places.count() &&
                      own_column >= 0 && own_column < tile.width;
    column = min(column, x.count() - 1) + x.begin;
    slot = min(slot, group - 1);
    // Of the thread's channels, the last ones may not be in the group. The last one that is stands for them.
    const int here = (group - slot + slots - 1) / slots;
    auto from = a.value.place(tile.n, c + slot, column, y.begin);
    typename Value::Offsets further[K];
#pragma unroll
    for (int k = 0; k < K; ++k) further[k] = a.value.further(min(k, here - 1) * slots);
    [[maybe_unused]] const T* weight = nullptr;
    if constexpr (Value::kWeighted) weight = a.value.weight(tile.n, a.maps[0].s, column, y.begin);
    T* copied = place_in(a.copied, tile.n, c + slot, tile.x + own_column, tile.y);
    float upper[2][K] = {}, lower[2][K] = {};
    __syncthreads();
    int kept[2] = {first_row[0], first_row[1]};  // finished rows in shared memory
    const int steps = y.count(), first_step = tile.y - y.begin;
    if (threadIdx.x < 2) {
      const int s = threadIdx.x;
      results[s] = place_in(a.maps[s].out, tile.n, c, inputs_x[s].begin, inputs_y[s].begin);
    }
#pragma unroll 1
    for (int step = 0;; ++step) {
      const OutputRow now = output_rows[step];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if (!signbit(now.below[s])) continue;
        // Rows before the tile's first go where nothing is kept, or where the next row overwrites them.
        float* const sums = sums_of(s) + (static_cast<int>(threadIdx.x) * kPairPitch + max(kept[s], -1));
#pragma unroll
        for (int k = 0; k < K; ++k) {
          sums[k * kFinishedRows] = upper[s][k];
          upper[s][k] = lower[s][k];
          lower[s][k] = 0;
        }
        ++kept[s];
      }
      const bool last = step == steps;
      if (last || kept[0] == kFinishedRows || kept[1] == kFinishedRows) {
        __syncthreads();
        // Along x.
#pragma unroll 1
        for (int s = 0; s < 2; ++s) {
          const int rows = s == 0 ? kept[0] : kept[1];
          if (rows <= 0 || (!last && rows < kFinishedRows)) continue;
          const PairedMap<T>& map = a.maps[s];
          const int* const starts = starts_of(s);
          const float* const lambdas = lambdas_of(s);
          const float* const sums = sums_of(s);
          const int columns = inputs_x[s].count();
          // Of planar maps a thread takes K channels, of interleaved ones adjacent threads take adjacent channels.
          constexpr int kChannels = kInterleaved ? 1 : K;
          for (int i = threadIdx.x; i < map.columns * (kInterleaved ? a.group : slots); i += blockDim.x) {
            int inner = i;
            const int outer = map.by_inner.split(inner);
            const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
            if (j >= columns || channel >= group) continue;
            const int begin = starts[j], middle = starts[j + 1], end = starts[j + 2];
            int of_slot = channel, first = 0;
            if constexpr (kInterleaved) {
#pragma unroll
              for (int k = 1; k < K; ++k) {
                if (of_slot < slots) continue;
                of_slot -= slots;
                first += kFinishedRows;
              }
            }
            const int at = kInterleaved ? begin * slots + of_slot : of_slot * a.places.width + begin;
            const float* read = sums + (at * kPairPitch + first);
            float sum[kChannels][kFinishedRows] = {};
            for_each_reader<float>(lambdas, begin, middle, end, [&](float share) {
#pragma unroll
              for (int k = 0; k < kChannels; ++k) {
#pragma unroll
                for (int q = 0; q < kFinishedRows; ++q) sum[k][q] += share * read[k * kFinishedRows + q];
              }
              read += (kInterleaved ? slots : 1) * kPairPitch;
            });
            T* to = results[s] + (kInterleaved ? j * static_cast<int>(map.out.stride_w) + channel
                                               : channel * map.out.stride_c + j);
#pragma unroll
            for (int k = 0; k < kChannels; ++k, to += slots * map.out.stride_c) {
              if (channel + k * slots >= group) break;
              T* row = to;
#pragma unroll
              for (int q = 0; q < kFinishedRows; ++q, row += map.out.stride_h) {
                if (q < rows) *row = static_cast<T>(a.scale * sum[k][q]);
              }
            }
          }
        }
        if (last) break;
        __syncthreads();
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          if (kept[s] < kFinishedRows) continue;
          kept[s] = 0;
          if (threadIdx.x == 0) results[s] += kFinishedRows * a.maps[s].out.stride_h;
        }
      }
      typename Value::Read read[K];
      a.value.read(from, further, read);
      a.value.down(from);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float factor = 1;
        if constexpr (Value::kWeighted) factor = static_cast<float>(*(s == 0 ? weight : moved(weight, a.next_weight)));
        const float below = fabsf(now.below[s]) * factor, above = factor - below;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const float value = a.value.passed(read[k], a.maps[s].s);
          upper[s][k] += above * value;
          lower[s][k] += below * value;
        }
      }
      if constexpr (Value::kWeighted) weight = moved(weight, a.value.weight_row);
      if (owns && static_cast<unsigned>(step - first_step) < static_cast<unsigned>(tile.rows)) {
        T* to = copied;
#pragma unroll
        for (int k = 0; k < K; ++k, to = moved(to, a.copied_slots)) {
          if (k < here) *to = static_cast<T>(a.scale * a.value.passed(read[k], a.copied_s));
        }
        copied = moved(copied, a.copied_row);
      }
    }
  }
}

// Whether a pair may have the map of that axis: it is not far smaller than the outputs, and a row of outputs reads at
// most one row further than the row before, in spite of rounding.
inline bool pairs(const Axis& axis) {
  return axis.in == axis.out || (axis.out < 4096 && axis.ratio < 0.999f && axis.ratio > 0 && axis.inverse <= 16);
}

// Gathers up to two maps that are resized, and one that is not if the data of `copied` is not null. Indices are the
// maps' numbers among the scores.
template <class T, bool kInterleaved, class Value>
void launch_gather_pair(const Tensor& on, const std::vector<Map<T>>& maps, const std::vector<int>& index,
                        const Map<T>& copied, int copied_index, int64_t height, int64_t width, float scale,
                        const Value& value) {
  constexpr int K = kPairChannels;
  GatherPairArguments<T, Value> a{};
  double longest_y = 0, longest_x = 0;  // outputs between inputs
  for (size_t s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    map.out = maps[std::min(s, maps.size() - 1)];
    map.resize = Resize(map.out.h, map.out.w, height, width);
    map.s = index[std::min(s, maps.size() - 1)];
    longest_y = std::max<double>(longest_y, map.resize.y.inverse);
    longest_x = std::max<double>(longest_x, map.resize.x.inverse);
  }
  // Outputs beside a tile that read its pixels, at most: one more on each side than the inverse ratio, and rounding.
  const int64_t halo_y = 2 * static_cast<int64_t>(longest_y) + 4, halo_x = 2 * static_cast<int64_t>(longest_x) + 4;
  a.value = value;
  if constexpr (Value::kWeighted) {
    a.next_weight = (a.maps[1].s - a.maps[0].s) * value.weights.stride_c * static_cast<int64_t>(sizeof(T));
  }
  a.scale = scale;
  const Map<T>& out = maps[0];
  const auto window = [&](int64_t columns) { return columns == width ? width : std::min(width, columns + halo_x); };
  // Of all numbers of slots and of strips of rows, those with which the busiest multiprocessor takes the fewest cycles
  // to issue its instructions and to move its sectors.
  double least = INFINITY;
  const int64_t limit = std::min(out.c, value.channel_limit()), all_slots = ceil_div(limit, K);
  for (int64_t slots = 1; slots <= std::min<int64_t>(all_slots, 32); ++slots) {
    const int64_t most = kPairThreads / slots;
    const int64_t columns = most >= width ? width : most <= halo_x ? 0 : int64_t{balanced(width, most - halo_x)};
    if (columns == 0) break;
    const int64_t group = std::min(K * slots, limit), groups = ceil_div(out.c, group);
    const Places places(window(columns), slots, kInterleaved);
    for (int64_t strips = ceil_div(height, kOutputRows); strips <= ceil_div(height, 8); ++strips) {
      const int64_t rows = ceil_div(height, strips), tiles = out.n * ceil_div(width, columns) * ceil_div(height, rows);
      const int64_t at_once = std::clamp<int64_t>(tiles * groups / kBlocksWanted, 1, groups);
      const int64_t blocks = tiles * ceil_div(groups, at_once);
      const double steps = rows + (strips > 1 ? longest_y + 1 : 0);
      const double issue = places.threads() / 128. * (400 + at_once * (200 + 100 * steps));
      // Of each stretch of adjacent values, sectors beside those that it fills.
      const double stretch = (kInterleaved ? slots : columns) * sizeof(T);
      const double sectors = at_once * group * places.width * steps * sizeof(T) * (1 + 32 / stretch) * 1.8 / 24;
      double cost = ceil_div(blocks, kMultiprocessors) * (issue + sectors);
      if (blocks < kBlocksWanted) cost *= 1 + 0.2 * (kBlocksWanted - blocks) / kBlocksWanted;
      if (cost >= least) continue;
      least = cost;
      a.places = places;
      a.group = static_cast<int>(group);
      a.tiling = Tiling(out.n, height, width, out.c, rows, columns, at_once * group);
    }
  }
  for (size_t s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    for (int64_t x = 0; x < width && s < maps.size(); x += a.tiling.width) {
      map.columns = std::max(map.columns, inputs_of(map.resize.x, x, a.tiling.width).count());
    }
    map.by_inner = Divisor(kInterleaved ? a.group : std::max(1, map.columns));
  }
  a.copied = copied;
  a.copied_s = copied_index;
  a.copied_row = bytes_between_rows(copied);
  a.copied_slots = a.places.slots * copied.stride_c * static_cast<int64_t>(sizeof(T));
  int bytes = 0;
  const auto take = [&](int64_t more, int count) {
    const int at = bytes, each = static_cast<int>(ceil_div(more, 16) * 16);
    bytes += count * each;
    return std::pair{at, each};
  };
  a.rows_at = take((std::min(height, a.tiling.rows + halo_y) + 1) * sizeof(OutputRow), 1).first;
  std::tie(a.sums_at, a.next_sums) = take((int64_t{a.places.threads()} * kPairPitch + 1) * sizeof(float), 2);
  const int most_columns = std::max(a.maps[0].columns, a.maps[1].columns);
  std::tie(a.starts_at, a.next_starts) = take((most_columns + 2) * sizeof(int), 2);
  std::tie(a.lambdas_at, a.next_lambdas) = take(a.places.width * sizeof(float), 2);
  launch(on, a.tiling.blocks(), a.places.threads(), bytes, gather_pair<T, kInterleaved, Value>, a);
}

}  // namespace a2s
