// The CUDA kernel that gathers the gradients of two resized maps, and of one that keeps its size, in one pass over what
// the outputs pass back. Neither map is larger than the outputs, or far smaller.
//
// A block takes a tile of the outputs. Of each map it makes the pixels whose first output (first_output) lies in the
// tile, from all outputs that read one of them: the tile and the few rows and columns beside it. A thread goes down a
// column of outputs, for K channels. The sums for the two rows of each map around an output are kept in registers; a
// finished one goes to shared memory. As soon as a map has kFinishedRows there, these are gathered along x: a thread
// takes those of kGathered channels of an input column.
//
// Under attention the thread also holds the two rows of scores of each map around an output, and sums grad * score over
// its channels: its part of the gradient of the pixel's weights. The threads of a pixel add theirs in shared memory.
//
// The values that outputs pass back are a Value:
//   spread(slots)         called before the launch: a thread's channels are `slots` apart
//   place(n, c, x, y)     pointers to all that is read of an output;  down(place)   those of the next row
//   read(place, k)        what is read of the output of the thread's channel k;  passed(read, s)   what goes to map s
// and, if kAttention, a factor of each map that all channels of a pixel share, and gradients of the recalibration:
//   weight(n, s, x, y)    a pointer to it in the map `weights`;  weight_row   bytes to that of the next row
//   kRecalibrated, grad_recalibration, and in what is read `grad`, not recalibrated
#pragma once

#include "paired_maps.h"

namespace a2s {

constexpr int kFinishedRows = 4;
constexpr int kOutputRows = 64;  // of a tile, at most
constexpr int kDotRows = 5;      // of dot products in shared memory

// How a row of outputs reads the two maps: the weight of the lower of the rows around it. It is negative, or -0, where
// that is no longer the row that the outputs above read.
struct alignas(16) OutputRow {
  float below[2];
  int in_tile, padding;
};

template <class T, class Value>
struct GatherPairArguments {
  PairedMap<T> maps[2];
  OwnMap<T> own;
  Value value;
  int64_t next_weight[3];  // bytes from the weight of the first map
  float scale;
  Tiling tiling;  // of the outputs
  Places places;  // columns of outputs that a tile's pixels read, and slots of channels
  int group;      // channels at once
  int rows_at, sums_at, next_sums, starts_at, next_starts, lambdas_at, next_lambdas;  // in shared memory
  // Sums over the channels of a tile of grad * score, (N, tiles of channels, 3, H, W), the last for the own map.
  float* dots;
  int dots_at;
  Divisor by_width;
};

// Threads of a block, at most, and blocks of a multiprocessor: they leave a thread 128 or 72 registers.
template <class Value>
constexpr int kPairThreads = Value::kAttention ? 256 : 224;
template <class Value>
constexpr int kPairBlocks = Value::kAttention ? 2 : 4;
constexpr int kPairChannels = 3;
// Of these, how many a thread gathers along x: all save instructions, one fills sectors of interleaved maps better.
template <bool kInterleaved, class Value>
constexpr int kPairGathered = kInterleaved && !Value::kAttention ? 1 : kPairChannels;
// Distances between the sums of adjacent threads, and between the dot products of a pixel: odd, so that they are in
// different banks.
constexpr int kPairPitch = kPairChannels * kFinishedRows | 1, kDotPitch = kBlockThreads | 1;

template <class T, bool kInterleaved, class Value>
__global__ void __launch_bounds__(kPairThreads<Value>, kPairBlocks<Value>)
    gather_pair(const __grid_constant__ GatherPairArguments<T, Value> a) {
  constexpr int K = kPairChannels, kGathered = kPairGathered<kInterleaved, Value>;
  extern __shared__ __align__(16) unsigned char shared[];
  // Not in registers, which the sums need.
  __shared__ Span inputs_x[2], inputs_y[2], x, y;
  __shared__ Tile tile;
  __shared__ int first_row[2];  // of each map that the first output reads, from the tile's first
  __shared__ int64_t results[2];  // bytes to the first row that is not finished
  [[maybe_unused]] __shared__ float* tile_dots;  // of the tile's first pixel
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
    if constexpr (Value::kAttention) {
      const int64_t part = tile.n * int64_t{a.tiling.c_tiles.divisor} + tile.c / a.tiling.channels;
      tile_dots = a.dots + ((part * 3 * a.tiling.all_rows + tile.y) * a.tiling.all_width + tile.x);
    }
  }
  __syncthreads();
  auto* const output_rows = reinterpret_cast<OutputRow*>(shared + a.rows_at);
  const auto sums_of = [&](int s) { return reinterpret_cast<float*>(shared + (a.sums_at + s * a.next_sums)) + 1; };
  const auto starts_of = [&](int s) { return reinterpret_cast<int*>(shared + (a.starts_at + s * a.next_starts)); };
  const auto lambdas_of = [&](int s) { return reinterpret_cast<float*>(shared + (a.lambdas_at + s * a.next_lambdas)); };
  [[maybe_unused]] auto* const dots = reinterpret_cast<float*>(shared + a.dots_at);
  // From the tile's first row of a map. A step after the last output finishes the map's last row.
  const auto input_row = [&](int s, int o) {
    const int end = inputs_y[s].end;
    return (o == y.end ? end : min(tap_of(a.maps[s].resize.y, o).low, end)) - inputs_y[s].begin;
  };
  for (int k = threadIdx.x; k <= y.count(); k += blockDim.x) {
    const int o = y.begin + k;
    OutputRow row{};
    row.in_tile = static_cast<unsigned>(o - tile.y) < static_cast<unsigned>(tile.rows);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (a.maps[s].columns == 0) continue;
      const Tap tap = tap_of(a.maps[s].resize.y, o);
      const float below = tap.low == tap.high ? 0.f : tap.lambda;
      row.below[s] = k > 0 && input_row(s, o) > input_row(s, o - 1) ? -below : below;
    }
    output_rows[k] = row;
  }
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const Axis& axis = a.maps[s].resize.x;
    if (threadIdx.x == 0) first_row[s] = input_row(s, y.begin);
    store_starts(axis, inputs_x[s].begin, inputs_x[s].count(), x.begin, starts_of(s));
    store_lambdas(axis, x.begin, x.count(), lambdas_of(s));
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
    const bool owns = static_cast<int>(threadIdx.x) < a.places.count() && slot < group && own_column >= 0 &&
                      own_column < tile.width;
    const bool has_own = a.own.out.data;
    column = min(column, x.count() - 1) + x.begin;
    slot = min(slot, group - 1);
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
    auto from = a.value.place(tile.n, c + slot, column, y.begin);
    T* to = place_in(a.own.out, tile.n, c + slot, tile.x + own_column, tile.y);
    float upper[2][K] = {}, lower[2][K] = {};
    [[maybe_unused]] HeldRows<T, 1, K> scores[2];
    [[maybe_unused]] int rows_below[2];  // of scores, below the lower one that is held
    [[maybe_unused]] const T *weight = nullptr, *own_scores = nullptr;
    [[maybe_unused]] T* to_recalibration = nullptr;
    if constexpr (Value::kAttention) {
      weight = a.value.weight(tile.n, a.maps[0].s, column, y.begin);
      own_scores = row_of(a.own.scores, tile.n, c + slot, tile.x + own_column, tile.y);
      if constexpr (Value::kRecalibrated) {
        to_recalibration = place_in(a.value.grad_recalibration, tile.n, c + slot, tile.x + own_column, tile.y);
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const PairedMap<T>& map = a.maps[s];
        const Tap tap = tap_of(map.resize.x, column);
        const int row = tap_of(map.resize.y, y.begin).low;
        HeldRows<T, 1, K>& held = scores[s];
        held.base = row_of(map.scores, tile.n, c + slot, tap.low, row);
        held.right = offset_in(map.scores, 0, tap.high - tap.low);
        held.right_share = tap.lambda;
        held.left_share = 1 - tap.lambda;
#pragma unroll
        for (int k = 0; k < K; ++k) held.left[k] = slot + k * slots < group ? k * map.scores_apart : 0;
        rows_below[s] = static_cast<int>(map.resize.y.in) - 1 - row;
        held.read(0, held.lower);
        held.step_down(rows_below[s], map.next_scores);
      }
    }
    __syncthreads();
    int kept[2] = {first_row[0], first_row[1]};  // finished rows in shared memory
    uint32_t sums_at = a.sums_at + (1 + threadIdx.x * kPairPitch) * sizeof(float);  // the thread's, of the first map
    keep(sums_at);
    [[maybe_unused]] int dot_rows = 0;           // of dot products there
    [[maybe_unused]] float *dots_to = tile_dots, *dot = dots + threadIdx.x;
    bool full = false;
    const int steps = y.count();
    if (threadIdx.x < 2) {
      const int s = threadIdx.x;
      const Map<T>& out = a.maps[s].out;
      results[s] = reinterpret_cast<char*>(place_in(out, tile.n, c, inputs_x[s].begin, inputs_y[s].begin)) -
                   reinterpret_cast<char*>(out.data);
    }
    // Gathers the finished rows of a map along x.
    const auto gather_along_x = [&](int s, int rows) {
      const PairedMap<T>& map = a.maps[s];
      const int* const starts = starts_of(s);
      const float* const lambdas = lambdas_of(s);
      const float* const sums = sums_of(s);
      const int columns = inputs_x[s].count();
      for (int i = threadIdx.x; i < map.columns * (slots * K / kGathered); i += blockDim.x) {
        int inner = i;
        const int outer = map.by_inner.split(inner);
        const int j = kInterleaved ? outer : inner, channel = kInterleaved ? inner : outer;
        if (j >= columns || channel >= group) continue;
        const int begin = starts[j], middle = starts[j + 1], end = starts[j + 2];
        const int k = kGathered == K ? 0 : (channel >= slots) + (channel >= 2 * slots), of = channel - k * slots;
        const int at = kInterleaved ? begin * slots + of : of * a.places.width + begin;
        const float* read = sums + (at * kPairPitch + k * kFinishedRows);
        float sum[kGathered][kFinishedRows] = {};
        for_each_reader<float>(lambdas, begin, middle, end, [&](float share) {
#pragma unroll
          for (int k = 0; k < kGathered; ++k) {
#pragma unroll
            for (int q = 0; q < kFinishedRows; ++q) sum[k][q] += share * read[k * kFinishedRows + q];
          }
          read += (kInterleaved ? slots : 1) * kPairPitch;
        });
        T* to = moved(map.out.data, results[s]) + (j * map.out.stride_w + channel * map.out.stride_c);
        const auto store = [&](auto all_rows) {
#pragma unroll
          for (int k = 0; k < kGathered; ++k, to = moved(to, map.out_apart)) {
            if (channel + k * slots >= group) break;
            T* place = to;
#pragma unroll
            for (int q = 0; q < kFinishedRows; ++q, place = moved(place, map.next_out)) {
              if (decltype(all_rows)::value || q < rows) *place = static_cast<T>(a.scale * sum[k][q]);
            }
          }
        };
        rows == kFinishedRows ? store(std::true_type{}) : store(std::false_type{});
      }
    };
    // Adds the dot products of the threads that share a pixel to those of earlier groups of channels.
    const auto add_dots = [&] {
      const int first = tile.x - x.begin, distance = kInterleaved ? 1 : a.places.width;
      const int64_t plane = int64_t{a.tiling.all_rows} * a.tiling.all_width;
      for (int i = threadIdx.x; i < dot_rows * a.tiling.width; i += blockDim.x) {
        int u = i;
        const int r = a.by_width.split(u);
        if (u >= tile.width) continue;
        const float* dot = dots + (3 * r * kDotPitch + (first + u) * (kInterleaved ? slots : 1));
        float sum[3] = {};
#pragma unroll 1
        for (int k = min(slots, group); k > 0; --k, dot += distance) {
#pragma unroll
          for (int s = 0; s < 3; ++s) sum[s] += dot[s * kDotPitch];
        }
        float* to = dots_to + (r * a.tiling.all_width + u);
#pragma unroll
        for (int s = 0; s < 3; ++s, to += plane) *to = c == tile.c ? sum[s] : *to + sum[s];
      }
    };
#pragma unroll 1
    for (int step = 0;; ++step) {
      const OutputRow now = output_rows[step];
      const bool last = step == steps;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if (!signbit(now.below[s])) continue;
        // Rows before the tile's first go where nothing is kept, or where the next row overwrites them.
        float* const sums = reinterpret_cast<float*>(shared + (sums_at + s * a.next_sums)) + max(kept[s], -1);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          sums[k * kFinishedRows] = upper[s][k];
          upper[s][k] = lower[s][k];
          lower[s][k] = 0;
        }
        full = ++kept[s] == kFinishedRows || full;
        if constexpr (Value::kAttention) {
          if (!last) scores[s].step_down(rows_below[s], a.maps[s].next_scores);
        }
      }
      if (last || full) {
        full = false;
        __syncthreads();
#pragma unroll 1
        for (int s = 0; s < 2; ++s) {
          const int rows = s == 0 ? kept[0] : kept[1];
          if (rows > 0 && (last || rows == kFinishedRows)) gather_along_x(s, rows);
        }
        if constexpr (Value::kAttention) {
          add_dots();
          dots_to += dot_rows * a.tiling.all_width;
          dot -= dot_rows * (3 * kDotPitch);
          dot_rows = 0;
        }
        if (last) break;
        __syncthreads();
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          if (kept[s] < kFinishedRows) continue;
          kept[s] = 0;
          if (threadIdx.x == 0) results[s] += kFinishedRows * a.maps[s].next_out;
        }
      }
      typename Value::Read read[K] = {};
      each_channel([&](int k) { read[k] = a.value.read(from, k); });
      float above[2], below[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float factor = 1;
        if constexpr (Value::kAttention) factor = static_cast<float>(*moved(weight, a.next_weight[s]));
        below[s] = fabsf(now.below[s]) * factor;
        above[s] = factor - below[s];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const float value = a.value.passed(read[k], a.maps[s].s);
          upper[s][k] += above[s] * value;
          lower[s][k] += below[s] * value;
        }
      }
      if (now.in_tile) {
        if (owns && (Value::kAttention || has_own)) {
          float own_factor = a.scale;
          [[maybe_unused]] float own[K] = {};
          if (has_own) {
            if constexpr (Value::kAttention) {
              own_factor = static_cast<float>(*moved(weight, a.next_weight[2]));
              each_channel([&](int k) { own[k] = static_cast<float>(*advanced(own_scores, k * a.own.scores_apart)); });
              own_scores = moved(own_scores, a.own.next_scores);
            }
            each_channel([&](int k) {
              *moved(to, k * a.own.apart) = static_cast<T>(own_factor * a.value.passed(read[k], a.own.s));
            });
            to = moved(to, a.own.next_row);
          }
          if constexpr (Value::kAttention) {
            if constexpr (Value::kRecalibrated) {
              each_channel([&](int k) {
                float merged = own_factor * own[k];
#pragma unroll
                for (int s = 0; s < 2; ++s) {
                  if (s == 1 && a.maps[1].columns == 0) continue;
                  merged += above[s] * scores[s].upper[k][0] + below[s] * scores[s].lower[k][0];
                }
                *moved(to_recalibration, k * a.value.grad_recalibration_apart) = static_cast<T>(merged * read[k].grad);
              });
              to_recalibration = moved(to_recalibration, a.value.grad_recalibration_row);
            }
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              float with_upper = 0, with_lower = 0;
#pragma unroll
              for (int k = 0; k < K; ++k) {
                const float value = a.value.passed(read[k], a.maps[s].s);
                with_upper += value * scores[s].upper[k][0];
                with_lower += value * scores[s].lower[k][0];
              }
              const float share = fabsf(now.below[s]);
              dot[s * kDotPitch] = (1 - share) * with_upper + share * with_lower;
            }
            float with_own = 0;
#pragma unroll
            for (int k = 0; k < K; ++k) with_own += a.value.passed(read[k], a.own.s) * own[k];
            dot[2 * kDotPitch] = with_own;
          }
        }
        if constexpr (Value::kAttention) {
          dot += 3 * kDotPitch;
          full = ++dot_rows == kDotRows;
        }
      }
      __syncwarp();  // else threads that own no output would run ahead until the next barrier
      a.value.down(from);
      if constexpr (Value::kAttention) weight = moved(weight, a.value.weight_row);
    }
  }
}

}  // namespace a2s
