// Launching the kernel that gathers the gradients of two maps at once.
#pragma once

#include <tuple>
#include <vector>

#include "gather_pair.h"

namespace a2s {

// Whether a launch may have the map: it is not far smaller than the outputs, a row of outputs reads at most one row
// further than the row before, in spite of rounding, and a pixel has a neighbour.
inline bool pairs(const Resize& resize) {
  const auto fits = [](const Axis& axis) {
    return axis.in == axis.out || (axis.out < 4096 && axis.ratio < 0.999f && axis.ratio > 0 && axis.inverse <= 16);
  };
  return resize.copies || (fits(resize.y) && fits(resize.x) && resize.x.in > 1);
}

// With K channels a thread, V adjacent ones each.
template <class T, bool kInterleaved, int V, int K, class Value, class DotsOf>
void launch_pair(const Tensor& on, const std::vector<PairedMap<T>>& maps, const OwnMap<T>& own, int64_t height,
                 int64_t width, float scale, const Value& value, const DotsOf& dots_of) {
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
  // From here on channels are counted in groups of V.
  const Map<T>& out = maps[0].out;
  const int64_t channels = out.c / V;
  limit = std::max<int64_t>(1, limit / V);
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
  const int64_t halo_x = 2 * static_cast<int64_t>(longest_x) + 1, halo_y = 2 * static_cast<int64_t>(longest_y) + 1;
  // Of all numbers of slots and of strips of rows, those with which the busiest multiprocessor takes the fewest cycles
  // to issue its instructions and to move its sectors.
  constexpr double kStep = Value::kAttention ? 50 + 30 * K * V : 100, kMoved = Value::kAttention ? 4.5 : 1.8;
  // Shared memory of a thread, and of an output.
  constexpr int kBytes = kSumBytes<kInterleaved, K * V, Value>;
  constexpr int kThreadBytes = 2 * kBytes + (Value::kAttention ? kDotRows * sizeof(Dots) : 0);
  constexpr int kThreads = kPairThreads<kAdjacent<T, kInterleaved, V>, K * V, Value>;
  constexpr int kPixelBytes = Value::kAttention ? sizeof(Weights) : 0;
  constexpr int kAligned = 16 * 16;  // lost between the parts
  const int64_t most_bytes = shared_bytes_of(on, kPairBlocks<Value>) - sizeof(PairTile) - kAligned;
  for (const PairedMap<T>& map : a.maps) {
    const Axis& axis = map.resize.x;
    for (int i = 0; i < axis.in; ++i) {
      a.readers = std::max(a.readers, first_output(axis, i + 1) - first_output(axis, i - 1));
    }
  }
  constexpr int64_t kWanted = kPairBlocks<Value> * kMultiprocessors;
  double least = INFINITY;
  const auto try_strips = [&](int64_t slots, int64_t columns, int64_t read) {
    const int64_t group = std::min(K * slots, limit), groups = ceil_div(channels, group);
    const Places places(read, slots, kInterleaved, kThreads);
    int64_t fixed = places.threads() * kThreadBytes;
    for (const PairedMap<T>& map : a.maps) {
      const auto inputs = static_cast<int64_t>(read / map.resize.x.inverse) + 2;
      fixed += inputs * (sizeof(InputColumn) + a.readers * sizeof(float));
    }
    for (int64_t strips = ceil_div(height, kOutputRows); strips <= ceil_div(height, 8); ++strips) {
      const int64_t rows = ceil_div(height, strips);
      const int64_t row_bytes = sizeof(OutputRow) + read * kPixelBytes;
      if (fixed + (rows + halo_y + 2) * row_bytes > most_bytes) continue;
      const int64_t tiles = out.n * ceil_div(width, columns) * ceil_div(height, rows);
      const int64_t at_once = std::clamp<int64_t>(tiles * groups / kWanted, 1, groups);
      const int64_t blocks = tiles * ceil_div(groups, at_once);
      const double steps = rows + (strips > 1 ? longest_y + 1 : 0), pixels = rows * columns;
      double thread = 250 + kStep * steps, bytes = group * V * places.width * steps * sizeof(T) * kMoved;
      // Of each stretch of adjacent values, sectors beside those that it fills.
      bytes *= 1 + 32. / ((kInterleaved ? slots * V : columns) * sizeof(T));
      double issue = places.threads() / 128. * (400 + at_once * thread), sectors = at_once * bytes / 24;
      if constexpr (Value::kAttention) {
        issue += at_once * pixels / 128 * (60 + slots * (10 + 30 * K * V));
        sectors += at_once * pixels;
      }
      const double block = std::max(issue, sectors) + std::min(issue, sectors) / 4;
      double cost = ceil_div(blocks, kMultiprocessors) * block;
      if (blocks < kWanted) cost *= 1 + 0.2 * (kWanted - blocks) / kWanted;
      if (cost >= least) continue;
      least = cost;
      a.places = places;
      a.group = static_cast<int>(group);
      a.tiling = Tiling(out.n, height, width, channels, rows, columns, at_once * group);
    }
  };
  const int64_t all_slots = ceil_div(limit, K);
  for (int64_t slots = 1; slots <= std::min<int64_t>(all_slots, 32); ++slots) {
    const int64_t most = kThreads / slots;
    int64_t columns = most >= width ? width : most <= halo_x ? 0 : int64_t{balanced(width, most - halo_x)};
    if (columns == 0) break;
    int64_t read = window_x(columns);
    for (; read > most && columns > 1; read = window_x(columns)) columns = balanced(width, columns - 1);
    if (read <= most) try_strips(slots, columns, read);
  }
  for (int64_t columns = width; least == INFINITY; columns = balanced(width, columns / 2)) {
    if (const int64_t read = window_x(columns); read <= kThreads) try_strips(1, columns, read);
  }
  const int slots = a.places.slots;
  for (size_t s = 0; s < 2; ++s) {
    PairedMap<T>& map = a.maps[s];
    for (int64_t x = 0; x < width && s < maps.size(); x += a.tiling.width) {
      map.columns = std::max(map.columns, inputs_of(map.resize.x, x, a.tiling.width).count());
    }
    constexpr int of_slot = K / kPairGathered<kInterleaved, K, Value>;
    map.by_inner = Divisor(kInterleaved ? slots * of_slot : std::max(1, map.columns));
    map.next_out = bytes_between_rows(map.out);
    map.out_apart = bytes_apart(map.out, slots * V);
    map.scores_apart = bytes_apart(map.scores, slots * V);
    map.next_scores = bytes_between_rows(map.scores);
  }
  a.own.apart = bytes_apart(own.out, slots * V);
  a.own.next_row = bytes_between_rows(own.out);
  a.own.scores_apart = bytes_apart(own.scores, slots * V);
  a.own.next_scores = bytes_between_rows(own.scores);
  a.value.spread(slots * V);
  int bytes = 0;
  const auto take = [&](int64_t more, int count) {
    const int at = bytes, each = static_cast<int>(ceil_div(more, 16) * 16);
    bytes += count * each;
    return std::pair{at, each};
  };
  const int64_t window_y = window(a.maps[0].resize.y, a.maps[1].resize.y, a.tiling.rows);
  a.rows_at = take((window_y + 2) * sizeof(OutputRow), 1).first;
  std::tie(a.sums_at, a.next_sums) = take(int64_t{a.places.threads()} * kBytes, 2);
  const int64_t most_columns = std::max(a.maps[0].columns, a.maps[1].columns);
  std::tie(a.columns_at, a.next_columns) = take(most_columns * sizeof(InputColumn), 2);
  std::tie(a.shares_at, a.next_shares) = take(most_columns * a.readers * sizeof(float), 2);
  if constexpr (Value::kAttention) {
    a.groups = static_cast<int>(ceil_div(channels, a.group));
    a.by_group = Divisor(a.group);
    a.dots = dots_of(a.groups);
    a.dots_row = a.places.threads() * static_cast<int>(sizeof(Dots));
    a.dots_at = take(int64_t{kDotRows} * a.dots_row, 1).first;
    a.weights_row = a.places.width * static_cast<int>(sizeof(Weights));
    a.weights_at = take(window_y * a.weights_row, 1).first;
    a.by_width = Divisor(a.tiling.width);
    const int64_t next = value.weights.stride_c * static_cast<int64_t>(sizeof(T));
    const int number[3] = {a.maps[0].s, a.maps[1].s, std::max(own.s, 0)};
    for (int i = 0; i < 3; ++i) {
      a.next_weight[i] = (number[i] - number[0]) * next;
    }
  }
  launch(on, a.tiling.blocks(), a.places.threads(), bytes, gather_pair<T, kInterleaved, V, K, Value>, a);
}

// Gathers one or two maps that are resized, and one that is not unless `own.s` is -1. `maps` and `own` have `out`,
// their number among the scores and, under attention, the scores; dots_of(groups) then allocates dot products, for that
// number of groups of an image's channels.
template <class T, bool kInterleaved, class Value, class DotsOf>
void launch_gather_pair(const Tensor& on, const std::vector<PairedMap<T>>& maps, const OwnMap<T>& own, int64_t height,
                        int64_t width, float scale, const Value& value, const DotsOf& dots_of) {
  const auto run = [&](auto v, auto k) {
    constexpr int V = decltype(v)::value, K = decltype(k)::value;
    launch_pair<T, kInterleaved, V, K>(on, maps, own, height, width, scale, value, dots_of);
  };
  constexpr auto one = std::integral_constant<int, 1>{};
  constexpr auto three = std::integral_constant<int, 3>{};
  if constexpr (Value::kAttention && !kInterleaved) {
    // Six channels or seven, whichever leave fewer places empty.
    const int64_t channels = maps[0].out.c;
    if (ceil_div(channels, 7) * 7 < ceil_div(channels, 6) * 6) return run(one, std::integral_constant<int, 7>{});
    return run(one, std::integral_constant<int, 6>{});
  } else if constexpr (Value::kAttention && sizeof(T) == 2) {
    constexpr int V = 2;
    bool all = value.template packs<V>() && (own.s < 0 || (packs<V>(own.out) && packs<V>(own.scores)));
    for (const PairedMap<T>& map : maps) all = all && packs<V>(map.out) && packs<V>(map.scores);
    if (all) return run(std::integral_constant<int, V>{}, three);
  }
  if constexpr (!Value::kAttention || kInterleaved) run(one, three);
}

}  // namespace a2s
