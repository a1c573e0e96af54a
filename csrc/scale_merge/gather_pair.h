// The CUDA kernel that gathers the gradients of two resized maps, and of one that keeps its size, in one pass over what
// the outputs pass back. Neither map is larger than the outputs, or far smaller.
//
// A block takes a tile of the outputs. Of each map it makes the pixels whose first output (first_output) lies in the
// tile, from all outputs that read one of them: the tile and the few rows and columns beside it. A thread goes down a
// column of outputs, for K times V adjacent channels, which are counted in groups of V. The sums for the two rows of
// each map around an output are kept in registers; a finished one goes to shared memory. As soon as a map has
// kFinishedRows there, these are gathered along x: a thread takes those of kGathered groups of an input column.
//
// Under attention the thread also holds the two rows of scores of each map around an output, and sums grad * score over
// its channels: its part of the gradient of the pixel's weights. The sums of the threads of a pixel are added up from
// shared memory. What all channels of a tile share lies there, too: the weights of its pixels, what is to be done in a
// row, and the outputs that read an input column.
//
// The values that outputs pass back are a Value:
//   spread(channels)      called before the launch: a thread's groups of channels are that far apart
//   place(n, c, x, y)     pointers to all that is read of an output;  keep_place(place)   keeps them in registers
//   next_row(place)       moves them to the next row;  next_channel(place)   to the thread's next group of channels
//   read(place, values)   what is read of V adjacent channels;  passed(value, s)   what goes to map s
// and, if kAttention, a factor of each map that all channels of a pixel share, and gradients of the recalibration:
//   weight(n, s, x, y)    a pointer to it in the map `weights`;  weight_row   bytes to that of the next row
//   kRecalibrated, grad_recalibration, and in what is read `grad`, not recalibrated
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

// Threads of a block, at most, and blocks of a multiprocessor: they leave a thread 72 registers, 128 for three channels
// under attention, and 168 for more.
template <int kChannels, class Value>
constexpr int kPairThreads = !Value::kAttention ? 224 : kChannels > 3 ? 192 : 256;
template <class Value>
constexpr int kPairBlocks = Value::kAttention ? 2 : 4;
// Of its K groups of channels, how many a thread gathers along x: all save instructions, one fills sectors of
// interleaved maps better.
template <bool kInterleaved, int K, class Value>
constexpr int kPairGathered = kInterleaved && !Value::kAttention ? 1 : K;
// Distance between the sums of adjacent threads: odd, so that they are in different banks.
template <bool kInterleaved, int kChannels, class Value>
constexpr int kPairPitch = kChannels * kFinishedRows<kInterleaved, Value> | 1;
template <bool kInterleaved, int kChannels, class Value>
constexpr int kSumBytes = kPairPitch<kInterleaved, kChannels, Value> * sizeof(float);

template <class T, bool kInterleaved, int V, int K, class Value>
__global__ void __launch_bounds__(kPairThreads<K * V, Value>, kPairBlocks<Value>)
    gather_pair(const __grid_constant__ GatherPairArguments<T, Value> a) {
  constexpr int kGathered = kPairGathered<kInterleaved, K, Value>, kRows = kFinishedRows<kInterleaved, Value>;
  constexpr int kPitch = kPairPitch<kInterleaved, K * V, Value>, kBytes = kSumBytes<kInterleaved, K * V, Value>;
  extern __shared__ __align__(16) unsigned char shared[];
  // Not in registers, which the sums need.
  __shared__ Span inputs_x[2], inputs_y[2], x, y;
  __shared__ Tile tile;
  __shared__ int64_t results[2];  // bytes to the first row that is not finished
  [[maybe_unused]] __shared__ int first_row[2], score_rows[2];  // of scores that the outputs read, and others below it
  if (threadIdx.x == 0) tile = a.tiling.tile(blockIdx.x);
  __syncthreads();
  if (threadIdx.x < 2) {
    const int s = threadIdx.x;
    const Resize& resize = a.maps[s].resize;
    inputs_x[s] = inputs_of(resize.x, tile.x, tile.width);
    inputs_y[s] = inputs_of(resize.y, tile.y, tile.rows);
  }
  if (threadIdx.x == 0) {
    x = outputs_of(a.maps[0].resize.x, a.maps[1].resize.x, tile.x, tile.width);
    y = outputs_of(a.maps[0].resize.y, a.maps[1].resize.y, tile.y, tile.rows);
  }
  __syncthreads();
  const int slots = a.places.slots;
  auto* const output_rows = reinterpret_cast<OutputRow*>(shared + a.rows_at);
  // The upper row of a map that an output reads, from the tile's first. A step after the last output finishes the map's
  // last row, or two steps, where rounding made the last output read the row above.
  const auto row_read = [&](int s, int o) {
    return min(tap_of(a.maps[s].resize.y, o).low, inputs_y[s].end) - inputs_y[s].begin;
  };
  bool two_steps = false;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    two_steps |= a.maps[s].columns > 0 && inputs_y[s].count() - row_read(s, y.end - 1) > 1;
  }
  const int last_step = y.count() + two_steps;
  const auto input_row = [&](int s, int step) {
    if (step < y.count()) return row_read(s, y.begin + step);
    return step == last_step ? inputs_y[s].count() : min(row_read(s, y.end - 1) + 1, inputs_y[s].count());
  };
  for (int k = threadIdx.x; k <= last_step; k += blockDim.x) {
    const int o = y.begin + k, above = o - tile.y;  // rows of the tile above it
    const bool last = k == last_step;
    OutputRow row{};
    if (static_cast<unsigned>(above) < static_cast<unsigned>(tile.rows)) row.to = OutputRow::kInTile;
    if (k >= y.count()) row.rows = last ? OutputRow::kLast : OutputRow::kEmpty;
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
      const int kept = min(above, tile.rows) % kDotRows;
      if (kept == 0 && above <= tile.rows) row.rows += kDotRows << 16;
      else if (last) row.rows += kept << 16;
    }
    output_rows[k] = row;
  }
  if (Value::kAttention && threadIdx.x < 2) {
    const Axis& axis = a.maps[threadIdx.x].resize.y;
    const int first = tap_of(axis, y.begin).low, last = min(tap_of(axis, y.end - 1).low, inputs_y[threadIdx.x].end);
    first_row[threadIdx.x] = first;
    score_rows[threadIdx.x] = min(last + 1, static_cast<int>(axis.in) - 1) - first;
  }
  const bool has_place = static_cast<int>(threadIdx.x) < a.places.count();
  int column, slot;
  a.places.template split<kInterleaved>(has_place ? threadIdx.x : a.places.count() - 1, column, slot);
  if constexpr (Value::kAttention) {
    const T* from = a.value.weight(tile.n, a.maps[0].s, x.begin + min(column, x.count() - 1), y.begin + slot);
    uint32_t to = a.weights_at + slot * a.weights_row + column * sizeof(Weights);
#pragma unroll 1
    for (int k = has_place ? slot : y.count(); k < y.count(); k += slots, to += slots * a.weights_row) {
      auto& weights = *reinterpret_cast<Weights*>(shared + to);
#pragma unroll
      for (int s = 0; s < 3; ++s) weights.of[s] = static_cast<float>(*moved(from, a.next_weight[s]));
      from = moved(from, slots * a.value.weight_row);
    }
  }
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const Axis& axis = a.maps[s].resize.x;
    const Span inputs = inputs_x[s];
    auto* const columns = reinterpret_cast<InputColumn*>(shared + (a.columns_at + s * a.next_columns));
    for (int j = threadIdx.x; j < inputs.count(); j += blockDim.x) {
      const int i = inputs.begin + j, end = first_output(axis, i + 1);
      int begin = first_output(axis, i - 1);
      if (begin < end && axis.weight<float>(begin, i) == 0) ++begin;
      columns[j] = {(begin - x.begin) * (kInterleaved ? slots : 1) * kBytes, end - begin};
      auto* share = reinterpret_cast<float*>(shared + (a.shares_at + s * a.next_shares)) + j * a.readers;
      for (int u = begin; u < end; ++u) *share++ = axis.weight<float>(u, i);
    }
    // Rows that are not finished are gathered with the others, and left.
    auto* const sums = reinterpret_cast<float*>(shared + (a.sums_at + s * a.next_sums)) + threadIdx.x * kPitch;
#pragma unroll
    for (int k = 0; k < kPitch; ++k) sums[k] = 0;
  }

#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    const int own_x = x.begin + column, in_x = min(own_x, x.end - 1), first = (c + min(slot, group - 1)) * V;
    const bool owns = has_place && slot < group && own_x >= tile.x && own_x < tile.x + tile.width;
    const bool has_own = a.own.s >= 0;
    // Of the thread's channels, the last ones may not be in the group.
    const bool whole = group == K * slots;
    const auto each_channel = [&](const auto& body) {
      if (whole) {
#pragma unroll
        for (int k = 0; k < K; ++k) body(k);
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (slot + k * slots < group) body(k);
        }
      }
    };
    __syncthreads();
    auto from = a.value.place(tile.n, first, in_x, y.begin);
    a.value.keep_place(from);
    T* to = place_in(a.own.out, tile.n, first, own_x, tile.y);
    float upper[2][K][V] = {}, lower[2][K][V] = {};
    [[maybe_unused]] HeldRows<T, V, K, !kInterleaved> scores[2];
    [[maybe_unused]] int rows_below[2];  // of scores, below the lower one that is held
    [[maybe_unused]] const T* own_scores = nullptr;
    [[maybe_unused]] T* to_recalibration = nullptr;
    if constexpr (Value::kAttention) {
      own_scores = row_of(a.own.scores, tile.n, first, own_x, tile.y);
      keep(own_scores);
      if constexpr (Value::kRecalibrated) {
        to_recalibration = place_in(a.value.grad_recalibration, tile.n, first, own_x, tile.y);
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const PairedMap<T>& map = a.maps[s];
        const Tap tap = tap_of(map.resize.x, in_x);
        auto& held = scores[s];
        // The last column has its left neighbour on the left, with no share.
        const bool last = tap.low == tap.high;
        held.base = row_of(map.scores, tile.n, first, tap.low - last, first_row[s]);
        held.right = offset_in(map.scores, 0, 1);
        held.right_share = last ? 1 : tap.lambda;
        held.left_share = 1 - held.right_share;
#pragma unroll
        for (int k = 0; k < K; ++k) held.left[k] = slot + k * slots < group ? k * map.scores_apart : 0;
        rows_below[s] = score_rows[s];
        held.read(0, held.lower);
        held.step_down(rows_below[s], map.next_scores);
      }
    }
    // In shared memory.
    uint32_t sums_at = a.sums_at + threadIdx.x * kBytes;
    keep(sums_at);
    [[maybe_unused]] uint32_t weights_at = a.weights_at + column * sizeof(Weights);
    [[maybe_unused]] uint32_t dots_at = a.dots_at + threadIdx.x * sizeof(Dots);
    [[maybe_unused]] float* dots_to = nullptr;
    if constexpr (Value::kAttention) {
      const int64_t part = (tile.n * int64_t{a.groups} + a.by_group.quotient(c)) * 3;
      dots_to = a.dots + ((part * a.tiling.all_rows + tile.y) * a.tiling.all_width + tile.x);
    }
    if (threadIdx.x < 2) {
      const int s = threadIdx.x;
      const Map<T>& out = a.maps[s].out;
      results[s] = reinterpret_cast<char*>(place_in(out, tile.n, c * V, inputs_x[s].begin, inputs_y[s].begin)) -
                   reinterpret_cast<char*>(out.data);
    }
    // Gathers the finished rows of a map along x.
    const auto gather_along_x = [&](int s, int rows) {
      const PairedMap<T>& map = a.maps[s];
      const auto* const columns = reinterpret_cast<const InputColumn*>(shared + (a.columns_at + s * a.next_columns));
      const int count = inputs_x[s].count();
      T* const out = moved(map.out.data, results[s]);
      for (int i = threadIdx.x; i < map.columns * (slots * K / kGathered); i += blockDim.x) {
        int inner = i;
        const int outer = map.by_inner.split(inner);
        const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
        if (j >= count || channel >= group) continue;
        static_assert(kGathered == K || K == 3);
        const int k = kGathered == K ? 0 : (channel >= slots) + (channel >= 2 * slots), of = channel - k * slots;
        const InputColumn column = columns[j];
        uint32_t share = a.shares_at + s * a.next_shares + j * a.readers * sizeof(float);
        uint32_t read = a.sums_at + s * a.next_sums + column.first +
                        of * (kInterleaved ? 1 : a.places.width) * kBytes + (1 + k * V * kRows) * sizeof(float);
        float sum[kGathered][kRows][V] = {};
#pragma unroll 1
        for (int left = column.readers; left > 0; --left) {
          const float weight = *reinterpret_cast<const float*>(shared + share);
          const auto* const of_output = reinterpret_cast<const float*>(shared + read);
#pragma unroll
          for (int k = 0; k < kGathered; ++k) {
#pragma unroll
            for (int q = 0; q < kRows; ++q) {
#pragma unroll
              for (int j = 0; j < V; ++j) sum[k][q][j] += weight * of_output[(k * V + j) * kRows + q];
            }
          }
          share += sizeof(float);
          read += (kInterleaved ? slots : 1) * kBytes;
        }
        T* to = out + (static_cast<uint32_t>(j) * static_cast<uint32_t>(map.out.stride_w) +
                       static_cast<uint32_t>(channel) * V * static_cast<uint32_t>(map.out.stride_c));
        const auto store = [&](auto all_rows) {
#pragma unroll
          for (int k = 0; k < kGathered; ++k, to = moved(to, map.out_apart)) {
            if (channel + k * slots >= group) break;
            T* place = to;
#pragma unroll
            for (int q = 0; q < kRows; ++q, place = moved(place, map.next_out)) {
              if (!decltype(all_rows)::value && q >= rows) break;
              if constexpr (!Value::kAttention) {
#pragma unroll
                for (int j = 0; j < V; ++j) sum[k][q][j] *= a.scale;
              }
              store_values<T, V>(place, sum[k][q]);
            }
          }
        };
        rows == kRows ? store(std::true_type{}) : store(std::false_type{});
      }
    };
    // Sums up the dot products of the threads that share a pixel.
    const auto add_dots = [&](int rows) {
      const int first = tile.x - x.begin, distance = kInterleaved ? 1 : a.places.width;
      const int64_t plane = int64_t{a.tiling.all_rows} * a.tiling.all_width;
      for (int i = threadIdx.x; i < rows * a.tiling.width; i += blockDim.x) {
        int u = i;
        const int r = a.by_width.split(u);
        if (u >= tile.width) continue;
        const int thread = (first + u) * (kInterleaved ? slots : 1);
        const Dots* dot = reinterpret_cast<const Dots*>(shared + (a.dots_at + r * a.dots_row)) + thread;
        Dots sum{};
#pragma unroll 2
        for (int k = min(slots, group); k > 0; --k, dot += distance) {
          const Dots more = *dot;
#pragma unroll
          for (int s = 0; s < 3; ++s) sum.of[s] += more.of[s];
        }
        float* to = dots_to + (r * a.tiling.all_width + u);
#pragma unroll
        for (int s = 0; s < 3; ++s, to += plane) *to = sum.of[s];
      }
      dots_to += rows * a.tiling.all_width;
    };
#pragma unroll 1
    for (const OutputRow* row = output_rows;; ++row) {
      const OutputRow now = *row;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if (!signbit(now.below[s])) continue;
        auto* const to = reinterpret_cast<float*>(shared + (sums_at + now.place_of(s)));
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
          for (int j = 0; j < V; ++j) {
            to[(k * V + j) * kRows] = upper[s][k][j];
            upper[s][k][j] = lower[s][k][j];
            lower[s][k][j] = 0;
          }
        }
        if constexpr (Value::kAttention) scores[s].step_down(rows_below[s], a.maps[s].next_scores);
      }
      if (now.rows != 0) {
        __syncthreads();
#pragma unroll 1
        for (int s = 0; s < 2; ++s) {
          if (const int rows = now.rows_of(s)) gather_along_x(s, rows);
        }
        if constexpr (Value::kAttention) {
          add_dots(now.rows_of(2));
          dots_at -= now.rows_of(2) * a.dots_row;
        }
        if (now.rows & OutputRow::kLast) break;
        __syncthreads();
        if (threadIdx.x < 2 && now.rows_of(threadIdx.x) != 0) {
          results[threadIdx.x] += kRows * a.maps[threadIdx.x].next_out;
        }
        if (now.rows & OutputRow::kEmpty) continue;
      }
      typename Value::Read read[K][V] = {};
      auto channel = from;
      each_channel([&](int k) {
        if (k > 0) a.value.next_channel(channel);
        a.value.read(channel, read[k]);
      });
      [[maybe_unused]] Weights weights;
      if constexpr (Value::kAttention) weights = *reinterpret_cast<const Weights*>(shared + weights_at);
      float above[2], below[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const float factor = Value::kAttention ? weights.of[s] : 1;
        below[s] = fabsf(now.below[s]) * factor;
        above[s] = factor - below[s];
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const float value = a.value.passed(read[k][j], a.maps[s].s);
            upper[s][k][j] += above[s] * value;
            lower[s][k][j] += below[s] * value;
          }
        }
      }
      if (now.to & OutputRow::kInTile) {
        if (owns && (Value::kAttention || has_own)) {
          float own_factor = a.scale;
          [[maybe_unused]] float own[K][V] = {};
          if (has_own) {
            if constexpr (Value::kAttention) {
              own_factor = weights.of[2];
              const T* score = own_scores;
              each_channel([&](int k) {
                if (k > 0) score = moved(score, a.own.scores_apart);
                load_values<T, V>(score, own[k]);
              });
              own_scores = moved(own_scores, a.own.next_scores);
            }
            T* place = to;
            each_channel([&](int k) {
              if (k > 0) place = moved(place, a.own.apart);
              float passed[V];
#pragma unroll
              for (int j = 0; j < V; ++j) passed[j] = own_factor * a.value.passed(read[k][j], a.own.s);
              store_values<T, V>(place, passed);
            });
            to = moved(to, a.own.next_row);
          }
          if constexpr (Value::kAttention) {
            if constexpr (Value::kRecalibrated) {
              T* place = to_recalibration;
              each_channel([&](int k) {
                float merged[V];
#pragma unroll
                for (int j = 0; j < V; ++j) {
                  merged[j] = own_factor * own[k][j];
#pragma unroll
                  for (int s = 0; s < 2; ++s) {
                    if (s == 1 && a.maps[1].columns == 0) continue;
                    merged[j] += above[s] * scores[s].upper[k][j] + below[s] * scores[s].lower[k][j];
                  }
                  merged[j] *= read[k][j].grad;
                }
                if (k > 0) place = moved(place, a.value.grad_recalibration_apart);
                store_values<T, V>(place, merged);
              });
              to_recalibration = moved(to_recalibration, a.value.grad_recalibration_row);
            }
            Dots here;
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              float with_upper = 0, with_lower = 0;
#pragma unroll
              for (int k = 0; k < K; ++k) {
#pragma unroll
                for (int j = 0; j < V; ++j) {
                  const float value = a.value.passed(read[k][j], a.maps[s].s);
                  with_upper += value * scores[s].upper[k][j];
                  with_lower += value * scores[s].lower[k][j];
                }
              }
              const float share = fabsf(now.below[s]);
              here.of[s] = with_upper + share * (with_lower - with_upper);
            }
            here.of[2] = here.of[3] = 0;
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) here.of[2] += a.value.passed(read[k][j], a.own.s) * own[k][j];
            }
            *reinterpret_cast<Dots*>(shared + dots_at) = here;
          }
        }
        if constexpr (Value::kAttention) dots_at += a.dots_row;
      }
      __syncwarp();  // else threads that own no output would run ahead until the next barrier
      a.value.next_row(from);
      if constexpr (Value::kAttention) weights_at += a.weights_row;
    }
  }
}

}  // namespace a2s
