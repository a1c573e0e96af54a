// The CUDA kernel that resizes S maps to one grid and combines them, without a resized map in memory.
//
// A block makes rows x columns of the result, group by group of its channels. A thread owns K channels of a column
// and goes down the rows. The two rows of each map around a result are held, already resized along x; they serve all
// results between them. The weights of a pixel are computed once for all its channels. The combination is an Op:
//   pixel(n, y, x, stores)  if kPixels, the weights w[S] of the maps at a pixel; else all weights are 1
//   finish(sum)             the result of the weighted sum of the resized maps
//   factor                  if kFactor, a map of the size of the result, which multiplies it; its data is null if none
// or, if kWinner,
//   value(v, winner)        the result of the values v[s] of the resized maps, and the map that won
#pragma once

#include <cmath>

#include "../support/launch.h"
#include "copy.h"
#include "held_rows.h"

namespace a2s {

constexpr int kTileRows = 32;           // at most
constexpr int kPixelBytes = 14 * 1024;  // shared memory for the weights of a tile's pixels, in channels_last
constexpr int kTileBytes = 36 * 1024;   // shared memory for the weights and the results of a planar tile
// Instructions of a thread: for the weights of a pixel, before the first group of channels, for a group, for a row, and
// for a channel of a row.
constexpr double kPixelCost = 110, kPlaceCost = 180, kGroupCost = 200, kRowCost = 45, kChannelCost = 22;

template <class T, int S, class Op>
struct ResizeArguments {
  Map<const T> maps[S];
  Resize resize[S];
  Op op;
  Map<T> out;
  Tiling tiling;
  Places places;
  int group;                        // channels at once
  int whole;                        // with fewer channels left, planar threads take one each
  int64_t next_row;                 // bytes from a value of the result to that of the next row
  int64_t next_pixel, next_factor;  // bytes from a pixel's weights and factors to those of the next row
  int64_t next_group[S], next_factor_group;  // bytes between groups of channels
  uint32_t apart[S], factor_apart, to_apart, winner_apart;  // bytes between a thread's channels
  Divisor by_width;
  Staging staging;
  // Only with Op::kWinner.
  Map<uint8_t> winner;
  Staging winner_staging;
  int pixels_bytes, staged_bytes;
};

// Whole 16-byte packs, of which every part is written.
template <class Acc, int S>
struct alignas(S > 2 ? 16 : S * sizeof(Acc)) PixelWeights {
  Acc w[S == 3 ? 4 : S];
};

// A block's part of the result. It needs a.pixels_bytes + a.staged_bytes of shared memory, and the winners' staging.
template <class T, int S, int V, int K, bool kInterleaved, class Op>
__device__ void resize_tile(const ResizeArguments<T, S, Op>& a, int block, unsigned char* shared) {
  using Acc = acc_t<T>;
  constexpr bool kStaged = V * sizeof(T) < kPackBytes;
  __shared__ SourceRows<Acc> sources[kTileRows][S];
  auto* const pixels = reinterpret_cast<PixelWeights<Acc, S>*>(shared);
  unsigned char* const staged = shared + a.pixels_bytes;
  unsigned char* const staged_winner = staged + a.staged_bytes;

  const Tile tile = a.tiling.tile(block);
  for (int i = threadIdx.x; i < S * kTileRows; i += blockDim.x) {
    const int s = i / kTileRows, r = i % kTileRows;
    if (r < tile.rows) sources[r][s] = source_rows<T>(a.maps[s], a.resize[s].y, tile.y + r, r == 0);
  }
  if constexpr (Op::kPixels) {
    for (int i = threadIdx.x; i < tile.rows * a.tiling.width; i += blockDim.x) {
      int x = i;
      const int r = a.by_width.split(x);
      if (x < tile.width) pixels[i] = a.op.pixel(tile.n, tile.y + r, tile.x + x, tile.c == 0);
    }
  }

  // A thread with one place prepares it once for all groups. Several are left where tiles are wide rows of maps.
  constexpr bool kOnePlace = Op::kPixels || kInterleaved;
  const bool several = a.places.count() > static_cast<int>(blockDim.x);
  int x, slot;
  HeldRows<T, V, K> map[S];
  [[maybe_unused]] const T* factor = nullptr;
  [[maybe_unused]] uint32_t multiplied = 0;
  if constexpr (Op::kFactor) {
    multiplied = a.op.factor.data != nullptr;
    keep(multiplied);  // each row would compare the pointer
  }
  const auto prepare = [&](int place, int c) {
    a.places.template split<kInterleaved>(place, x, slot);
    if (x >= tile.width || place >= a.places.count()) slot = INT32_MAX;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Tap tap = tap_of(a.resize[s].x, tile.x + x);
      map[s].base = advanced(row_of(a.maps[s], tile.n, c * V, 0, 0), offset_in(a.maps[s], slot * V, tap.low));
      map[s].right = offset_in(a.maps[s], 0, tap.high - tap.low);
      map[s].right_share = tap.lambda;
    }
    if constexpr (Op::kFactor) {
      if (multiplied) factor = row_of(a.op.factor, tile.n, (c + slot) * V, tile.x + x, tile.y);
    }
  };
  if constexpr (kOnePlace) prepare(threadIdx.x, tile.c);
  // In planar merges, of many groups, it moves on from one to the next.
  constexpr bool kMovesOn = Op::kPixels && !kInterleaved;
  T* out = place_in(a.out, tile.n, tile.c * V, tile.x, tile.y);
#pragma unroll 1
  for (int c = tile.c, group; c < tile.c + tile.channels; c += group) {
    group = tile.c + tile.channels - c;
    const bool whole = group >= a.whole;
    group = whole ? a.group : kInterleaved ? group : min(group, a.places.slots);
    if constexpr (!kMovesOn) out = place_in(a.out, tile.n, c * V, tile.x, tile.y);
    [[maybe_unused]] uint8_t* winner = nullptr;
    if constexpr (Op::kWinner) winner = place_in(a.winner, tile.n, c, tile.x, tile.y);
    __syncthreads();
    int place = threadIdx.x;
    do {
      if constexpr (!kOnePlace) {
        if (c == tile.c || several) prepare(place, c);
      }
      if (slot >= group) continue;
      // Bytes to the thread's other channels. In place of one beyond the group the one before comes again.
      uint32_t to_of[K] = {};
      [[maybe_unused]] uint32_t factor_of[K] = {}, winner_of[K] = {};
#pragma unroll
      for (int s = 0; s < S; ++s) {
        map[s].left_share = 1 - map[s].right_share;
        map[s].left[0] = 0;
      }
#pragma unroll
      for (int k = 1; k < K; ++k) {
        const bool there = kInterleaved ? slot + k * a.places.slots < group : whole;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          map[s].left[k] = there ? k * a.apart[s] : map[s].left[k - 1];
          if (kInterleaved || k == 1) keep(map[s].left[k]);
          else map[s].left[k] = k * map[s].left[1];
        }
        if constexpr (Op::kFactor) factor_of[k] = there ? k * a.factor_apart : factor_of[k - 1];
        to_of[k] = there || !kInterleaved ? k * a.to_apart : to_of[k - 1];
        if constexpr (Op::kWinner) winner_of[k] = there || !kInterleaved ? k * a.winner_apart : winner_of[k - 1];
      }
      [[maybe_unused]] const auto* weights = pixels + x;
      // Packs go to their places, other results to shared memory.
      unsigned char *to, *winner_to = nullptr;
      if constexpr (!kStaged) {
        to = reinterpret_cast<unsigned char*>(out + (slot * V + x * a.out.stride_w));
      } else {
        const auto staged_at = [&](const Staging& staging) {
          return kInterleaved ? slot * V + x * staging.outer_pitch : x + slot * staging.outer_pitch;
        };
        to = staged + (Staging::start(out) + staged_at(a.staging)) * sizeof(T);
        if constexpr (Op::kWinner) winner_to = staged_winner + Staging::start(winner) + staged_at(a.winner_staging);
      }
      const SourceRows<Acc>(*row)[S] = sources;
#pragma unroll 1
      for (int left = tile.rows; left > 0; --left, ++row) {
        Acc result[K][V], v[Op::kWinner ? S : 1][K][V];
        PixelWeights<Acc, S> here;
        if constexpr (Op::kPixels) here = *weights;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const SourceRows<Acc>& source = (*row)[s];
          const auto add = [&](int k, int j, Acc first, Acc second) {
            if constexpr (Op::kWinner) v[s][k][j] = first + second;
            else if (s == 0) result[k][j] = first + second;
            else if constexpr (Op::kPixels) result[k][j] = result[k][j] + first + second;
            else result[k][j] += first + second;
          };
          const Acc weight = Op::kPixels ? here.w[s] : Acc(1);
          if (a.resize[s].copies) {
            Acc copied[K][V];
            map[s].copy(source, copied);
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) add(k, j, weight * copied[k][j], -Acc(0));
            }
          } else {
            const Acc above = weight * source.above, below = weight * source.below;
            map[s].advance(source, source.step);
#pragma unroll
            for (int k = 0; k < K; ++k) {
#pragma unroll
              for (int j = 0; j < V; ++j) add(k, j, above * map[s].upper[k][j], below * map[s].lower[k][j]);
            }
          }
        }
        Acc won[K] = {};
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if constexpr (Op::kWinner) {
            Acc values[S];
#pragma unroll
            for (int s = 0; s < S; ++s) values[s] = v[s][k][0];
            result[k][0] = a.op.value(values, won[k]);
          } else {
#pragma unroll
            for (int j = 0; j < V; ++j) result[k][j] = a.op.finish(result[k][j]);
          }
        }
        if constexpr (Op::kFactor) {
          if (multiplied) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
              Acc factors[V];
              load_values<T, V>(advanced(factor, factor_of[k]), factors);
#pragma unroll
              for (int j = 0; j < V; ++j) result[k][j] *= factors[j];
            }
            factor = moved(factor, a.next_factor);
          }
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
          store_values<T, V>(reinterpret_cast<T*>(to + to_of[k]), result[k]);
          if constexpr (Op::kWinner) winner_to[winner_of[k]] = static_cast<unsigned char>(won[k]);
        }
        if constexpr (Op::kPixels) weights = moved(weights, a.next_pixel);
        if constexpr (Op::kWinner) winner_to += a.winner_staging.row_pitch;
        to += a.next_row;
      }
#pragma unroll
      for (int s = 0; s < S; ++s) map[s].base = moved(map[s].base, group == a.group ? a.next_group[s] : a.apart[s]);
      if constexpr (Op::kFactor) {
        const int64_t next = group == a.group ? a.next_factor_group : a.factor_apart;
        if (multiplied) factor = moved(factor, next - tile.rows * a.next_factor);
      }
    } while (!kOnePlace && (place += blockDim.x) < a.places.count());
    __syncthreads();
    const int outer = kInterleaved ? tile.width : group, inner = kInterleaved ? group * V : tile.width;
    if constexpr (kStaged) a.staging.store(reinterpret_cast<const T*>(staged), out, tile.rows, outer, inner);
    if constexpr (Op::kWinner) {
      a.winner_staging.store(reinterpret_cast<const uint8_t*>(staged_winner), winner, tile.rows, outer, inner);
    }
    if constexpr (kMovesOn) out += group * a.out.stride_c;
  }
}

// Threads of a block at most, and such blocks that a multiprocessor should hold, which bounds a thread's registers: the
// most with which no kernel spills. Where a thread has one place, larger blocks leave fewer threads idle.
template <class T, int S>
constexpr bool kManyRegisters = sizeof(T) == 8 || S == 4;
template <class T, int S, bool kInterleaved, class Op>
constexpr int kResizeThreads = Op::kPixels && !kInterleaved && !kManyRegisters<T, S> ? 384 : kBlockThreads;
template <class T, int S, bool kInterleaved, class Op>
constexpr int kResizeBlocks = kManyRegisters<T, S> ? 2 : kResizeThreads<T, S, kInterleaved, Op> > kBlockThreads ? 3 : 4;

template <class T, int S, int K, bool kInterleaved, class Op>
__global__ void __launch_bounds__(kResizeThreads<T, S, kInterleaved, Op>, kResizeBlocks<T, S, kInterleaved, Op>)
    resize(const __grid_constant__ ResizeArguments<T, S, Op> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  resize_tile<T, S, 1, K, kInterleaved>(a, blockIdx.x, shared);
}

// Several maps, each resized to a result of its own, or copied.
template <class T, class Op>
struct ResizePart : ResizeArguments<T, 1, Op> {
  ImageCopy<T> copy;
};

template <class T, class Op>
struct ResizePartsArguments {
  ResizePart<T, Op> part[kMaxScales];
  Parts parts;
};

template <class T, int V, int K, bool kInterleaved, class Op>
__global__ void __launch_bounds__(kBlockThreads, kResizeBlocks<T, 1, kInterleaved, Op>)
    resize_parts(const __grid_constant__ ResizePartsArguments<T, Op> a) {
  extern __shared__ __align__(16) unsigned char shared[];
  int block = blockIdx.x;
  const int s = a.parts.part_of(block);
  const auto& part = a.part[s];
  if (part.copy.bytes > 0) return part.copy.run(block);
  resize_tile<T, 1, V, K, kInterleaved, Op>(part, block, shared);
}

// Groups that planar threads with K channels each make of all channels; of fewer than a group they take one each.
template <int K>
int64_t planar_groups(int64_t channels, int64_t slots) {
  return channels / (K * slots) + ceil_div(channels % (K * slots), slots);
}

// In planar tiles of `width` columns, for threads with one place: the slots, up to `most`, with which all groups take
// the fewest threads.
template <int K>
Places merge_places(int64_t width, int64_t channels, int64_t most, int most_threads) {
  Places best(width, 1, false, most_threads);
  const auto cost = [&](const Places& places) { return places.threads() * planar_groups<K>(channels, places.slots); };
  for (int64_t slots = 2; slots <= std::min(most, most_threads / width); ++slots) {
    const Places other(width, slots, false, most_threads);
    if (cost(other) <= cost(best)) best = other;
  }
  return best;
}

// Cuts the result into tiles; returns the bytes of shared memory that a block needs.
template <int V, int K, bool kInterleaved, class T, int S, class Op>
int plan_resize(ResizeArguments<T, S, Op>& a) {
  constexpr int pixel_bytes = Op::kPixels ? sizeof(PixelWeights<acc_t<T>, S>) : 0;
  constexpr bool kStaged = V * sizeof(T) < kPackBytes;
  const Map<T>& out = a.out;
  const int64_t channels = out.c / V;
  int64_t limit = channels;
  for (int s = 0; s < S; ++s) limit = std::min(limit, std::max<int64_t>(1, channel_limit(a.maps[s]) / V));
  if constexpr (Op::kFactor) limit = std::min(limit, std::max<int64_t>(1, channel_limit(a.op.factor) / V));
  int64_t rows = kTileRows;
  if (kInterleaved) {
    const int64_t slots = balanced(ceil_div(limit, K), kStaged ? kBlockThreads / 2 : 64);
    a.places = Places(balanced(out.w, kBlockThreads / slots), slots, true);
  } else {
    const int width = balanced(out.w, Op::kPixels ? kBlockThreads : 2 * kBlockThreads + 64);
    const int64_t slots = std::max<int64_t>(1, limit / K);
    a.places = Op::kPixels ? merge_places<K>(width, channels, slots, kResizeThreads<T, S, false, Op>)
                           : Places::planar(width, slots);
  }
  a.group = a.whole = K * a.places.slots;
  if (a.group > limit) {
    a.group = static_cast<int>(kInterleaved ? limit : 1);
    a.whole = INT32_MAX;
  }
  const int64_t groups = ceil_div(channels, a.group);
  const int64_t blocks_wanted = kBlocksWanted * kBlockThreads / std::max(kBlockThreads, a.places.threads());
  int64_t at_once = groups * a.group;
  if (Op::kPixels && kInterleaved) {
    rows = std::clamp<int64_t>(kPixelBytes / (pixel_bytes * a.places.width), 1, rows);
  } else if (Op::kPixels) {
    // The weights of a pixel serve the channels of a tile, what a thread prepares its rows.
    const int64_t tile_row = a.places.width * (pixel_bytes + a.group * static_cast<int64_t>(sizeof(T)));
    const int64_t most = std::clamp<int64_t>(kTileBytes / tile_row, 1, rows);
    const double row = kRowCost + K * kChannelCost;
    double least = INFINITY;
    for (int64_t r = 1; r <= most; ++r) {
      const int64_t strips = ceil_div(out.h, r);
      const int64_t tiles = std::max<int64_t>(1, out.n * strips * ceil_div(out.w, a.places.width));
      const int64_t wanted = std::min(groups, ceil_div(blocks_wanted, tiles));
      for (const int64_t part : {groups / wanted, ceil_div(groups, wanted)}) {
        const int64_t parts = ceil_div(groups, part);
        const int64_t blocks = ceil_div(tiles * parts, kMultiprocessors) * kMultiprocessors;
        // Of a thread, on average.
        const double rows_down = static_cast<double>(out.h) / strips;
        const double its_groups = static_cast<double>(planar_groups<K>(channels, a.places.slots)) / parts;
        const double thread =
            kPlaceCost + its_groups * kGroupCost + rows_down * (its_groups * row + kPixelCost / a.places.slots);
        const double cost = std::max(blocks_wanted, blocks) * thread;
        if (cost < least) {
          least = cost;
          rows = r;
          at_once = part * a.group;
        }
      }
    }
  }
  int bytes;
  const auto cut = [&] {
    a.tiling = Tiling(out.n, out.h, out.w, channels, rows, a.places.width, at_once);
    const int64_t packs = ceil_div(a.tiling.rows * a.tiling.width * pixel_bytes, kPackBytes);
    bytes = a.pixels_bytes = static_cast<int>(packs * kPackBytes);
    if (!kStaged) return;
    const int outer = kInterleaved ? a.tiling.width : K * a.places.slots;
    const int inner = kInterleaved ? a.group * V : a.tiling.width;
    a.staging = Staging(out, a.tiling.rows, outer, inner, kInterleaved);
    bytes += a.staged_bytes = a.staging.template bytes<T>();
    if constexpr (Op::kWinner) {
      a.winner_staging = Staging(a.winner, a.tiling.rows, outer, inner, kInterleaved);
      bytes += a.winner_staging.template bytes<uint8_t>();
    }
  };
  cut();
  for (; bytes > kMaxSharedBytes && rows > 1; cut()) --rows;
  // Without pixels to compute, blocks may have few channels: more blocks are spread more evenly.
  const int64_t wanted = (Op::kPixels ? 1 : 4) * blocks_wanted;
  for (; a.tiling.blocks() < wanted && at_once > a.group; cut()) at_once -= a.group;
  for (; a.tiling.blocks() < blocks_wanted && rows > 2; cut()) --rows;
  a.by_width = Divisor(a.tiling.width);
  a.next_row = kStaged ? a.staging.row_pitch * static_cast<int64_t>(sizeof(T)) : bytes_between_rows(out);
  a.next_pixel = a.tiling.width * pixel_bytes;
  const int64_t slots = a.places.slots * V;
  const auto bytes_of = [](const auto& map, int64_t channels) {
    return channels * map.stride_c * static_cast<int64_t>(sizeof(T));
  };
  for (int s = 0; s < S; ++s) {
    a.next_group[s] = bytes_of(a.maps[s], a.group * V);
    a.apart[s] = static_cast<uint32_t>(bytes_of(a.maps[s], slots));
  }
  a.to_apart = static_cast<uint32_t>((kInterleaved ? slots : slots * a.staging.outer_pitch) * sizeof(T));
  if constexpr (Op::kFactor) {
    a.next_factor = bytes_between_rows(a.op.factor);
    a.next_factor_group = bytes_of(a.op.factor, a.group * V);
    a.factor_apart = static_cast<uint32_t>(bytes_of(a.op.factor, slots));
  }
  if constexpr (Op::kWinner) {
    a.winner_apart = static_cast<uint32_t>(kInterleaved ? slots : slots * a.winner_staging.outer_pitch);
  }
  return bytes;
}

// Channels that a thread takes: as many as leave registers for four blocks on a multiprocessor.
template <class T, int V>
constexpr int kResizeChannels = V > 1 || sizeof(T) == 8 ? 1 : 3;

// Combines the resized maps into `out`, a fresh result.
template <class T, int S, bool kInterleaved, class Op>
void launch_resize(const Tensor& on, const ScaleSet<T, S>& scales, const Op& op, const Map<T>& out,
                   const Map<uint8_t>& winner) {
  ResizeArguments<T, S, Op> a{};
  for (int s = 0; s < S; ++s) {
    a.maps[s] = scales.map[s];
    a.resize[s] = scales.resize[s];
  }
  a.op = op;
  a.out = out;
  a.winner = winner;
  constexpr int K = kResizeChannels<T, 1>;
  const int bytes = plan_resize<1, K, kInterleaved>(a);
  launch(on, a.tiling.blocks(), a.places.threads(), bytes, resize<T, S, K, kInterleaved, Op>, a);
}

// The identity: a map resized by itself.
template <class T>
struct PlainResize {
  static constexpr bool kPixels = false, kFactor = false, kWinner = false;
  __device__ acc_t<T> finish(acc_t<T> sum) const { return sum; }
};

// Resizes maps[i] into out[i], all of one size, in one launch.
template <class T, int V, bool kInterleaved>
void launch_resize_parts(const Tensor& on, const std::vector<Map<const T>>& maps, const std::vector<Map<T>>& out) {
  constexpr int K = kResizeChannels<T, V>;
  ResizePartsArguments<T, PlainResize<T>> a{};
  int bytes = 0, threads = 0;
  for (size_t s = 0; s < maps.size(); ++s) {
    auto& part = a.part[s];
    part.maps[0] = maps[s];
    part.out = out[s];
    part.resize[0] = Resize(maps[s].h, maps[s].w, out[s].h, out[s].w);
    if (part.resize[0].copies) part.copy = ImageCopy<T>(maps[s], out[s]);
    if (part.copy.bytes > 0) {
      threads = std::max(threads, kCopyThreads);
      a.parts.add(part.copy.blocks(out[s].n));
      continue;
    }
    bytes = std::max(bytes, plan_resize<V, K, kInterleaved>(part));
    threads = std::max(threads, part.places.threads());
    a.parts.add(part.tiling.blocks());
  }
  launch(on, a.parts.blocks, threads, bytes, resize_parts<T, V, K, kInterleaved, PlainResize<T>>, a);
}

}  // namespace a2s
