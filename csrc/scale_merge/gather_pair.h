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
// shared memory.
//
// The values that outputs pass back are a Value:
//   spread(channels)      called before the launch: a thread's groups of channels are that far apart in planar maps
//   place(n, c, x, y)     pointers to all that is read of an output;  keep_place(place)   keeps them in registers
//   next_row(place)       moves them to the next row;  next_channel(place)   to the thread's next group of channels
//   read(place, values)   what is read of V adjacent channels;  passed(value, s)   what goes to map s
// and, if kAttention, a factor of each map that all channels of a pixel share, and gradients of the recalibration:
//   weight(n, s, x, y)    a pointer to it in the map `weights`;  weight_row   bytes to that of the next row
//   kRecalibrated, grad_recalibration, and in what is read `grad`, not recalibrated
#pragma once

#include "pair_tile.h"

namespace a2s {

// Threads of a block, at most, and blocks of a multiprocessor: they leave a thread 72 registers; under attention 128 for
// three channels, 96 if these are adjacent, and 168 for more.
template <bool kBeside, int kChannels, class Value>
constexpr int kPairThreads = !Value::kAttention ? 224 : kChannels > 3 ? 192 : kBeside ? 320 : 256;
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

// Whether a thread's channels are adjacent, so that their places are at fixed distances; else they are as many groups
// apart as there are slots, so that adjacent threads fill sectors.
template <class T, bool kInterleaved, int V>
constexpr bool kAdjacent = kInterleaved && V * sizeof(T) == 2;

// The place of a thread's next group of channels.
template <bool kBeside, class T>
__device__ T* next_channel(T* place, int64_t apart) {
  return kBeside ? place + 1 : moved(place, apart);
}

// Three adjacent values of two bytes, in two stores: wherever they lie, either the first two or the last two are aligned
// together.
template <class T>
__device__ void store_three(T* to, float first, float second, float third) {
  static_assert(sizeof(T) == 2);
  const auto a = static_cast<T>(first), b = static_cast<T>(second), c = static_cast<T>(third);
  uint32_t behind = reinterpret_cast<uintptr_t>(to) % sizeof(uint32_t);  // bytes to the aligned two
  keep(behind);  // else threads would branch
  const Pack<T, 2> pair{behind ? b : a, behind ? c : b};
  *reinterpret_cast<uint32_t*>(moved(to, behind)) = __builtin_bit_cast(uint32_t, pair);
  *moved(to, 4 - 2 * static_cast<int>(behind)) = behind ? a : c;
}

// Of a map's scores, the two rows around an output, resized along x, in a thread's channels.
template <class T, bool kInterleaved, bool kBeside, int V, int K>
struct ScoreRows {
  const T* next;    // the left neighbour in the row below the lower one
  uint32_t right;   // bytes from there to the right neighbour, in interleaved maps
  uint32_t to[K];   // bytes to a channel, if they are not beside; 0 for one that is not there
  int rows_below;   // from the next one on, of those that outputs read
  float left_share, right_share, upper[K][V], lower[K][V];

  // Goes one row down. The last row is held twice.
  template <class EachChannel>
  __device__ void step_down(const PairedMap<T>& map, const EachChannel& each_channel) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) upper[k][j] = lower[k][j];
    }
    if (rows_below == 0) return;
    --rows_below;
    const auto read = [&](int k, const T* left, const T* right) {
      float l[V], r[V];
      load_values<T, V>(left, l);
      load_values<T, V>(right, r);
#pragma unroll
      for (int j = 0; j < V; ++j) lower[k][j] = left_share * l[j] + right_share * r[j];
    };
    if constexpr (kBeside) {
      const T* beside = advanced(next, right);
      each_channel([&](int k) { read(k, next + k, beside + k); });
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const T* left = advanced(next, to[k]);
        read(k, left, kInterleaved ? advanced(left, right) : left + 1);
      }
    }
    next = moved(next, map.next_scores);
  }
};

template <class T, bool kInterleaved, int V, int K, class Value>
__global__ void __launch_bounds__(kPairThreads<kAdjacent<T, kInterleaved, V>, K * V, Value>, kPairBlocks<Value>)
    gather_pair(const __grid_constant__ GatherPairArguments<T, Value> a) {
  constexpr int kGathered = kPairGathered<kInterleaved, K, Value>, kRows = kFinishedRows<kInterleaved, Value>;
  constexpr int kPitch = kPairPitch<kInterleaved, K * V, Value>, kBytes = kSumBytes<kInterleaved, K * V, Value>;
  constexpr bool kBeside = kAdjacent<T, kInterleaved, V>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ PairTile t;
  find_pixels(a, t);
  const int slots = a.places.slots;
  const bool has_place = static_cast<int>(threadIdx.x) < a.places.count();
  int column, slot;
  a.places.template split<kInterleaved>(has_place ? threadIdx.x : a.places.count() - 1, column, slot);
  auto* const output_rows = reinterpret_cast<OutputRow*>(shared + a.rows_at);
  fill_rows<kRows>(a, t, output_rows);
  if constexpr (Value::kAttention) fill_weights(a, t, column, has_place ? slot : t.y.count(), shared);
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    fill_columns(a, t, s, (kInterleaved ? slots : 1) * kBytes, shared);
    // Rows that are not finished are gathered with the others, and left.
    auto* const sums = reinterpret_cast<float*>(shared + (a.sums_at + s * a.next_sums)) + threadIdx.x * kPitch;
#pragma unroll
    for (int k = 0; k < kPitch; ++k) sums[k] = 0;
  }

  const Tile& tile = t.tile;
  const int channel = kBeside ? slot * K : slot;  // the thread's first one in a group
  constexpr auto next = [](auto* place, int64_t apart) { return next_channel<kBeside>(place, apart); };
#pragma unroll 1
  for (int c = tile.c; c < tile.c + tile.channels; c += a.group) {
    const int group = min(a.group, tile.c + tile.channels - c);
    const int own_x = t.x.begin + column, in_x = min(own_x, t.x.end - 1), first = (c + min(channel, group - 1)) * V;
    const bool owns = has_place && channel < group && own_x >= tile.x && own_x < tile.x + tile.width;
    const bool has_own = a.own.s >= 0;
    // Of the thread's channels, the last ones may not be in the group.
    const int apart = kBeside ? 1 : slots;
    uint32_t whole = group == K * slots;
    keep(whole);  // it would be computed each time
    const auto each_from = [&](int channel, const auto& body) {
      if (whole) {
#pragma unroll
        for (int k = 0; k < K; ++k) body(k);
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (channel + k * apart < group) body(k);
        }
      }
    };
    const auto each_channel = [&](const auto& body) { each_from(channel, body); };
    // Stores the values of channels that belong to a thread.
    const auto store = [&](int channel, T* to, int64_t apart, const float (&values)[K][V]) {
      each_from(channel, [&](int k) {
        if (k > 0) to = next(to, apart);
        store_values<T, V>(to, values[k]);
      });
    };
    __syncthreads();
    auto from = a.value.place(tile.n, first, in_x, t.y.begin);
    a.value.keep_place(from);
    T* to = place_in(a.own.out, tile.n, first, own_x, tile.y);
    float upper[2][K][V] = {}, lower[2][K][V] = {};
    [[maybe_unused]] ScoreRows<T, kInterleaved, kBeside, V, K> scores[2];
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
        ScoreRows<T, kInterleaved, kBeside, V, K>& held = scores[s];
        // The last column has its left neighbour on the left, with no share.
        const bool last = tap.low == tap.high;
        held.next = row_of(map.scores, tile.n, first, tap.low - last, t.first_row[s]);
        held.right = offset_in(map.scores, 0, 1);
        held.right_share = last ? 1 : tap.lambda;
        held.left_share = 1 - held.right_share;
        held.rows_below = t.score_rows[s] + 1;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          held.to[k] = channel + k * apart < group ? k * map.scores_apart : 0;
#pragma unroll
          for (int j = 0; j < V; ++j) held.lower[k][j] = 0;
        }
        held.step_down(map, each_channel);
        held.step_down(map, each_channel);
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
      t.results[s] = reinterpret_cast<char*>(place_in(out, tile.n, c * V, t.inputs_x[s].begin, t.inputs_y[s].begin)) -
                   reinterpret_cast<char*>(out.data);
    }
    // Gathers the finished rows of a map along x.
    const auto gather_along_x = [&](int s, int rows) {
      const PairedMap<T>& map = a.maps[s];
      const auto* const columns = reinterpret_cast<const InputColumn*>(shared + (a.columns_at + s * a.next_columns));
      const int count = t.inputs_x[s].count();
      T* const out = moved(map.out.data, t.results[s]);
      for (int i = threadIdx.x; i < map.columns * (slots * K / kGathered); i += blockDim.x) {
        int inner = i;
        const int outer = map.by_inner.split(inner);
        const int j = kInterleaved ? outer : inner, item = kInterleaved ? inner : outer;
        // Of which threads the sums are, and from which of its channels on.
        int slot = item, k = 0;
        if constexpr (kGathered == 1) {
          slot = kBeside ? item / K : item - (item >= slots ? slots : 0) - (item >= 2 * slots ? slots : 0);
          k = kBeside ? item % K : (item >= slots) + (item >= 2 * slots);
          static_assert(K == 3);
        }
        const int channel = kBeside ? slot * K + k : item;
        if (j >= count || channel >= group) continue;
        const InputColumn column = columns[j];
        uint32_t share = a.shares_at + s * a.next_shares + j * a.readers * sizeof(float);
        uint32_t read = a.sums_at + s * a.next_sums + column.first +
                        slot * (kInterleaved ? 1 : a.places.width) * kBytes + (1 + k * V * kRows) * sizeof(float);
        float sum[kRows][kGathered][V] = {};
#pragma unroll 1
        for (int left = column.readers; left > 0; --left) {
          const float weight = *reinterpret_cast<const float*>(shared + share);
          const auto* const of_output = reinterpret_cast<const float*>(shared + read);
#pragma unroll
          for (int k = 0; k < kGathered; ++k) {
#pragma unroll
            for (int q = 0; q < kRows; ++q) {
#pragma unroll
              for (int j = 0; j < V; ++j) sum[q][k][j] += weight * of_output[(k * V + j) * kRows + q];
            }
          }
          share += sizeof(float);
          read += (kInterleaved ? slots : 1) * kBytes;
        }
        T* to = out + (static_cast<uint32_t>(j) * static_cast<uint32_t>(map.out.stride_w) +
                       static_cast<uint32_t>(channel) * V * static_cast<uint32_t>(map.out.stride_c));
        const auto store_rows = [&](auto all_rows) {
#pragma unroll
          for (int q = 0; q < kRows; ++q, to = moved(to, map.next_out)) {
            if (!decltype(all_rows)::value && q >= rows) break;
            if constexpr (!Value::kAttention) {
#pragma unroll
              for (int k = 0; k < kGathered; ++k) {
#pragma unroll
                for (int j = 0; j < V; ++j) sum[q][k][j] *= a.scale;
              }
            }
            if constexpr (kGathered == 1) {
              store_values<T, V>(to, sum[q][0]);
              continue;
            }
            if constexpr (kBeside && kGathered == 3) {
              if (whole) {
                store_three(to, sum[q][0][0], sum[q][1][0], sum[q][2][0]);
                continue;
              }
            }
            if constexpr (kGathered == K) store(channel, to, map.out_apart, sum[q]);
          }
        };
        rows == kRows ? store_rows(std::true_type{}) : store_rows(std::false_type{});
      }
    };
    // Sums up the dot products of the threads that share a pixel.
    const auto add_dots = [&](int rows) {
      const int first = tile.x - t.x.begin, distance = kInterleaved ? 1 : a.places.width;
      const int sharing = kBeside ? (group + K - 1) / K : min(slots, group);
      const int64_t plane = int64_t{a.tiling.all_rows} * a.tiling.all_width;
      for (int i = threadIdx.x; i < rows * a.tiling.width; i += blockDim.x) {
        int u = i;
        const int r = a.by_width.split(u);
        if (u >= tile.width) continue;
        const int thread = (first + u) * (kInterleaved ? slots : 1);
        const Dots* dot = reinterpret_cast<const Dots*>(shared + (a.dots_at + r * a.dots_row)) + thread;
        Dots sum{};
#pragma unroll 2
        for (int k = sharing; k > 0; --k, dot += distance) {
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
        if constexpr (Value::kAttention) scores[s].step_down(a.maps[s], each_channel);
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
          t.results[threadIdx.x] += kRows * a.maps[threadIdx.x].next_out;
        }
        if (now.rows & OutputRow::kEmpty) continue;
      }
      typename Value::Read read[K][V] = {};
      auto place = from;
      each_channel([&](int k) {
        if (k > 0) a.value.template next_channel<kBeside>(place);
        a.value.read(place, read[k]);
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
                if (k > 0) score = next(score, a.own.scores_apart);
                load_values<T, V>(score, own[k]);
              });
              own_scores = moved(own_scores, a.own.next_scores);
            }
            float passed[K][V];
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) passed[k][j] = own_factor * a.value.passed(read[k][j], a.own.s);
            }
            store(channel, to, a.own.apart, passed);
            to = moved(to, a.own.next_row);
          }
          if constexpr (Value::kAttention) {
            if constexpr (Value::kRecalibrated) {
              float merged[K][V];
#pragma unroll
              for (int k = 0; k < K; ++k) {
#pragma unroll
                for (int j = 0; j < V; ++j) {
                  float& sum = merged[k][j];
                  sum = own_factor * own[k][j];
#pragma unroll
                  for (int s = 0; s < 2; ++s) {
                    if (s == 1 && a.maps[1].columns == 0) continue;
                    sum += above[s] * scores[s].upper[k][j] + below[s] * scores[s].lower[k][j];
                  }
                  sum *= read[k][j].grad;
                }
              }
              store(channel, to_recalibration, a.value.grad_recalibration_apart, merged);
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
