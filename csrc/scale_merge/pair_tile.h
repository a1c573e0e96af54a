// What the kernel that gathers the gradients of two maps at once (gather_pair.h) is told, and what the threads of a
// tile share in shared memory: how each row of outputs reads the maps and what is to be done before it, the weights of
// the pixels, and the outputs that read an input column.
#pragma once

#include "paired_maps.h"

namespace a2s {

// Finished rows that a thread gathers along x at once. With one channel it has registers for more.
template <bool kInterleaved, class Value>
constexpr int kFinishedRows = kInterleaved && !Value::kAttention ? 8 : 4;
constexpr int kOutputRows = 64;  // of a tile, at most
constexpr int kDotRows = 4;      // of dot products in shared memory

// How a row of outputs reads the two maps, and what is to be done before it.
struct alignas(16) OutputRow {
  float below[2];  // weight of the lower of the rows around it; negative, or -0, if the sums for the upper are finished
  uint32_t to;     // where those go: bytes from the thread's sums, 16 bits for each map, and kInTile
  uint32_t rows;   // to take from shared memory, for each map and of dot products, 8 bits each; kLast, kEmpty

  static constexpr uint32_t kInTile = 1u << 31, kLast = 1u << 24, kEmpty = 1u << 25;  // empty: only finishes sums
  __device__ uint32_t place_of(int s) const { return s == 0 ? to & 0xffff : to >> 16 & 0x7fff; }
  __device__ int rows_of(int s) const { return rows >> 8 * s & 0xff; }
};

// An input column of a tile: its readers' sums, in bytes from those of the first column, and their number.
struct alignas(8) InputColumn {
  int first, readers;
};

// The weights of a pixel, in the two maps and the own one, and sums over a thread's channels of grad * score. A fourth
// makes these 16 bytes, which are stored at once.
struct Weights {
  float of[3];
};
struct alignas(16) Dots {
  float of[4];
};

template <class T, class Value>
struct GatherPairArguments {
  PairedMap<T> maps[2];
  OwnMap<T> own;
  Value value;
  int64_t next_weight[3];  // bytes from a pixel's weight in the first map
  float scale;
  Tiling tiling;  // of the outputs
  Places places;  // columns of outputs that a tile's pixels read, and slots of channels
  int group;      // channels at once
  int readers;    // of an input column, at most
  // In shared memory: OutputRow; sums; InputColumn and the weights of its readers; Weights; Dots.
  int rows_at, sums_at, next_sums, columns_at, next_columns, shares_at, next_shares, weights_at, dots_at;
  int weights_row, dots_row;  // bytes between rows
  // Only under attention.
  float* dots;  // their sums over a group of channels, (N, groups, 3, H, W)
  int groups;
  Divisor by_group, by_width;
};

// The pixels of a tile. They are in shared memory, as the sums need the registers.
struct PairTile {
  Tile tile;                        // of the outputs
  Span x, y;                        // outputs that read its inputs
  Span inputs_x[2], inputs_y[2];
  int first_row[2], score_rows[2];  // of scores that the outputs read, and others below it
  int64_t results[2];               // bytes from the start of a gradient to the first row that is not finished
};

// The pixels of a block's tile. Called by all its threads.
template <class T, class Value>
__device__ void find_pixels(const GatherPairArguments<T, Value>& a, PairTile& t) {
  if (threadIdx.x == 0) t.tile = a.tiling.tile(blockIdx.x);
  __syncthreads();
  if (threadIdx.x < 2) {
    const Resize& resize = a.maps[threadIdx.x].resize;
    t.inputs_x[threadIdx.x] = inputs_of(resize.x, t.tile.x, t.tile.width);
    t.inputs_y[threadIdx.x] = inputs_of(resize.y, t.tile.y, t.tile.rows);
  }
  if (threadIdx.x == 0) {
    t.x = outputs_of(a.maps[0].resize.x, a.maps[1].resize.x, t.tile.x, t.tile.width);
    t.y = outputs_of(a.maps[0].resize.y, a.maps[1].resize.y, t.tile.y, t.tile.rows);
  }
  __syncthreads();
  if (Value::kAttention && threadIdx.x < 2) {
    const Axis& axis = a.maps[threadIdx.x].resize.y;
    const int first = tap_of(axis, t.y.begin).low;
    const int last = min(tap_of(axis, t.y.end - 1).low, t.inputs_y[threadIdx.x].end);
    t.first_row[threadIdx.x] = first;
    t.score_rows[threadIdx.x] = min(last + 1, static_cast<int>(axis.in) - 1) - first;
  }
}

// A step for each row of outputs, and one that finishes the last row of the maps; two, where rounding made the last
// output read the row above.
template <int kRows, class T, class Value>
__device__ void fill_rows(const GatherPairArguments<T, Value>& a, const PairTile& t, OutputRow* rows) {
  // The upper row of a map that an output reads, from the tile's first.
  const auto row_read = [&](int s, int o) {
    return min(tap_of(a.maps[s].resize.y, o).low, t.inputs_y[s].end) - t.inputs_y[s].begin;
  };
  bool two_steps = false;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    two_steps |= a.maps[s].columns > 0 && t.inputs_y[s].count() - row_read(s, t.y.end - 1) > 1;
  }
  const int last_step = t.y.count() + two_steps;
  const auto input_row = [&](int s, int step) {
    if (step < t.y.count()) return row_read(s, t.y.begin + step);
    return step == last_step ? t.inputs_y[s].count() : min(row_read(s, t.y.end - 1) + 1, t.inputs_y[s].count());
  };
  for (int k = threadIdx.x; k <= last_step; k += blockDim.x) {
    const int o = t.y.begin + k, above = o - t.tile.y;  // rows of the tile above it
    const bool last = k == last_step;
    OutputRow row{};
    if (static_cast<unsigned>(above) < static_cast<unsigned>(t.tile.rows)) row.to = OutputRow::kInTile;
    if (k >= t.y.count()) row.rows = last ? OutputRow::kLast : OutputRow::kEmpty;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (a.maps[s].columns == 0) continue;
      const Tap tap = tap_of(a.maps[s].resize.y, o);
      const int finished = input_row(s, k);
      const bool finishes = k > 0 && finished > input_row(s, k - 1);
      row.below[s] = tap.low == tap.high ? 0.f : tap.lambda;
      if (finishes) row.below[s] = -row.below[s];
      // Rows of the tile are kept behind the first place, which gets the others.
      const int place = finished < 1 ? 0 : 1 + (finished - 1) % kRows;
      row.to += (s * a.next_sums + place * static_cast<int>(sizeof(float))) << 16 * s;
      const int kept = finished <= 0 ? 0 : finished % kRows;
      if (finished > 0 && finishes && kept == 0) row.rows += kRows << 8 * s;
      else if (last) row.rows += kept << 8 * s;
    }
    if (Value::kAttention && above > 0) {
      const int kept = min(above, t.tile.rows) % kDotRows;
      if (kept == 0 && above <= t.tile.rows) row.rows += kDotRows << 16;
      else if (last) row.rows += kept << 16;
    }
    rows[k] = row;
  }
}

// The weights of the outputs' pixels. A thread takes `column` of each row from `row` on, as many apart as there are
// slots.
template <class T, class Value>
__device__ void fill_weights(const GatherPairArguments<T, Value>& a, const PairTile& t, int column, int row,
                             unsigned char* shared) {
  const int slots = a.places.slots;
  const T* from =
      a.value.weight(t.tile.n, a.maps[0].s, t.x.begin + min(column, t.x.count() - 1), t.y.begin + row);
  uint32_t to = a.weights_at + row * a.weights_row + column * sizeof(Weights);
#pragma unroll 1
  for (; row < t.y.count(); row += slots, to += slots * a.weights_row) {
    auto& weights = *reinterpret_cast<Weights*>(shared + to);
#pragma unroll
    for (int s = 0; s < 3; ++s) weights.of[s] = static_cast<float>(*moved(from, a.next_weight[s]));
    from = moved(from, slots * a.value.weight_row);
  }
}

// The input columns of map s. Adjacent outputs' sums are `apart` bytes apart.
template <class T, class Value>
__device__ void fill_columns(const GatherPairArguments<T, Value>& a, const PairTile& t, int s, int apart,
                             unsigned char* shared) {
  const Axis& axis = a.maps[s].resize.x;
  auto* const columns = reinterpret_cast<InputColumn*>(shared + (a.columns_at + s * a.next_columns));
  auto* const shares = reinterpret_cast<float*>(shared + (a.shares_at + s * a.next_shares));
  for (int j = threadIdx.x; j < t.inputs_x[s].count(); j += blockDim.x) {
    const int i = t.inputs_x[s].begin + j, end = first_output(axis, i + 1);
    int begin = first_output(axis, i - 1);
    if (begin < end && axis.weight<float>(begin, i) == 0) ++begin;
    columns[j] = {(begin - t.x.begin) * apart, end - begin};
    float* share = shares + j * a.readers;
    for (int u = begin; u < end; ++u) *share++ = axis.weight<float>(u, i);
  }
}

}  // namespace a2s
