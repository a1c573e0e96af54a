// Launching the kernel that gathers the gradients of two maps at once.
#pragma once

#include <tuple>
#include <vector>

#include "gather_pair.h"

namespace a2s {

// Whether a pair may have the map of that axis: it is not far smaller than the outputs, and a row of outputs reads at
// most one row further than the row before, in spite of rounding.
inline bool pairs(const Axis& axis) {
  return axis.in == axis.out || (axis.out < 4096 && axis.ratio < 0.999f && axis.ratio > 0 && axis.inverse <= 16);
}

// Gathers one or two maps that are resized, and one that is not if the data of `own` is not null. `maps` and `own` have
// `out`, their number among the scores and, under attention, the scores; dots_of(tiles) then allocates dot products, for
// that number of tiles into which an image's channels are cut.
template <class T, bool kInterleaved, class Value, class DotsOf>
void launch_gather_pair(const Tensor& on, const std::vector<PairedMap<T>>& maps, const OwnMap<T>& own, int64_t height,
                        int64_t width, float scale, const Value& value, const DotsOf& dots_of) {
  constexpr int K = kPairChannels;
  GatherPairArguments<T, Value> a{};
  a.value = value;
  a.own = own;
  a.scale = scale;
  double longest_y = 0, longest_x = 0;  // outputs between inputs
  int64_t limit = std::min({maps[0].out.c, value.channel_limit(), channel_limit(own.out), channel_limit(own.scores)});
  for (size_t s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    map = maps[std::min(s, maps.size() - 1)];
    map.resize = Resize(map.out.h, map.out.w, height, width);
    longest_y = std::max<double>(longest_y, map.resize.y.inverse);
    longest_x = std::max<double>(longest_x, map.resize.x.inverse);
    limit = std::min(limit, channel_limit(map.scores));
  }
  // The most outputs along an axis that a tile of `length` reads.
  const auto window = [](const Axis& a, const Axis& b, int64_t length) {
    int64_t most = 0;
    for (int64_t i = 0; i < a.out; i += length) {
      most = std::max<int64_t>(most, outputs_of(a, b, i, std::min(length, a.out - i)).count());
    }
    return most;
  };
  const auto window_x = [&](int64_t columns) { return window(a.maps[0].resize.x, a.maps[1].resize.x, columns); };
  // Outputs beside a tile that it reads; rounding can add to them.
  const int64_t halo_x = 2 * static_cast<int64_t>(longest_x) + 1;
  const Map<T>& out = maps[0].out;
  // Of all numbers of slots and of strips of rows, those with which the busiest multiprocessor takes the fewest cycles
  // to issue its instructions and to move its sectors.
  constexpr double kStep = Value::kAttention ? 220 : 100, kMoved = Value::kAttention ? 4.5 : 1.8;
  double least = INFINITY;
  const int64_t all_slots = ceil_div(limit, K);
  for (int64_t slots = 1; slots <= std::min<int64_t>(all_slots, 32); ++slots) {
    const int64_t most = kPairThreads<Value> / slots;
    int64_t columns = most >= width ? width : most <= halo_x ? 0 : int64_t{balanced(width, most - halo_x)};
    if (columns == 0) break;
    int64_t read = window_x(columns);
    for (; read > most && columns > 1; read = window_x(columns)) columns = balanced(width, columns - 1);
    if (read > most) continue;
    const int64_t group = std::min(K * slots, limit), groups = ceil_div(out.c, group);
    const Places places(read, slots, kInterleaved);
    for (int64_t strips = ceil_div(height, kOutputRows); strips <= ceil_div(height, 8); ++strips) {
      const int64_t rows = ceil_div(height, strips), tiles = out.n * ceil_div(width, columns) * ceil_div(height, rows);
      const int64_t at_once = std::clamp<int64_t>(tiles * groups / kBlocksWanted, 1, groups);
      const int64_t blocks = tiles * ceil_div(groups, at_once);
      const double steps = rows + (strips > 1 ? longest_y + 1 : 0), pixels = rows * columns;
      double thread = 200 + kStep * steps, bytes = group * places.width * steps * sizeof(T) * kMoved;
      // Of each stretch of adjacent values, sectors beside those that it fills.
      bytes *= 1 + 32. / ((kInterleaved ? slots : columns) * sizeof(T));
      double issue = places.threads() / 128. * (400 + at_once * thread), sectors = at_once * bytes / 24;
      if constexpr (Value::kAttention) {
        issue += at_once * pixels / 128 * (45 + 108 * slots);
        sectors += at_once * pixels;
      }
      const double block = std::max(issue, sectors) + std::min(issue, sectors) / 4;
      double cost = ceil_div(blocks, kMultiprocessors) * block;
      if (blocks < kBlocksWanted) cost *= 1 + 0.2 * (kBlocksWanted - blocks) / kBlocksWanted;
      if (cost >= least) continue;
      least = cost;
      a.places = places;
      a.group = static_cast<int>(group);
      a.tiling = Tiling(out.n, height, width, out.c, rows, columns, at_once * group);
    }
  }
  const int slots = a.places.slots;
  for (size_t s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    for (int64_t x = 0; x < width && s < maps.size(); x += a.tiling.width) {
      map.columns = std::max(map.columns, inputs_of(map.resize.x, x, a.tiling.width).count());
    }
    constexpr int of_slot = K / kPairGathered<kInterleaved, Value>;
    map.by_inner = Divisor(kInterleaved ? slots * of_slot : std::max(1, map.columns));
    map.next_out = bytes_between_rows(map.out);
    map.out_apart = bytes_apart(map.out, slots);
    map.scores_apart = bytes_apart(map.scores, slots);
    map.next_scores = bytes_between_rows(map.scores);
  }
  a.own.apart = bytes_apart(own.out, slots);
  a.own.next_row = bytes_between_rows(own.out);
  a.own.scores_apart = bytes_apart(own.scores, slots);
  a.own.next_scores = bytes_between_rows(own.scores);
  a.value.spread(slots);
  int bytes = 0;
  const auto take = [&](int64_t more, int count) {
    const int at = bytes, each = static_cast<int>(ceil_div(more, 16) * 16);
    bytes += count * each;
    return std::pair{at, each};
  };
  const int64_t window_y = window(a.maps[0].resize.y, a.maps[1].resize.y, a.tiling.rows);
  a.rows_at = take((window_y + 1) * sizeof(OutputRow), 1).first;
  std::tie(a.sums_at, a.next_sums) = take((int64_t{a.places.threads()} * kPairPitch + 1) * sizeof(float), 2);
  const int most_columns = std::max(a.maps[0].columns, a.maps[1].columns);
  std::tie(a.starts_at, a.next_starts) = take((most_columns + 2) * sizeof(int), 2);
  std::tie(a.lambdas_at, a.next_lambdas) = take(a.places.width * sizeof(float), 2);
  if constexpr (Value::kAttention) {
    a.dots = dots_of(a.tiling.c_tiles.divisor);
    a.dots_at = take(kDotRows * 3 * kDotPitch * sizeof(float), 1).first;
    a.by_width = Divisor(a.tiling.width);
    const int number[3] = {a.maps[0].s, a.maps[1].s, own.s};
    for (int i = 0; i < 3; ++i) {
      a.next_weight[i] = (number[i] - number[0]) * value.weights.stride_c * static_cast<int64_t>(sizeof(T));
    }
  }
  launch(on, a.tiling.blocks(), a.places.threads(), bytes, gather_pair<T, kInterleaved, Value>, a);
}

}  // namespace a2s
