// What merged scores pass back to the maps that they were merged from, and the gradients of these maps.
#pragma once

#include "launch_gather_pair.h"
#include "scale_merge.h"

namespace a2s {

// Under the average: grad.
template <class T>
struct AverageGrad {
  static constexpr bool kAttention = false;
  using Read = acc_t<T>;
  using Place = const T*;
  Map<const T> grad;
  int64_t grad_row = bytes_between_rows(grad);
  int64_t grad_apart = 0;

  int64_t channel_limit() const { return a2s::channel_limit(grad); }
  void spread(int slots) { grad_apart = bytes_apart(grad, slots); }
  __device__ Place place(int n, int c, int x, int y) const { return row_of(grad, n, c, x, y); }
  __device__ void next_row(Place& place) const { place = moved(place, grad_row); }
  template <bool kBeside>
  __device__ void next_channel(Place& place) const {
    place = a2s::next_channel<kBeside>(place, grad_apart);
  }
  template <int V>
  __device__ void read(Place place, Read (&values)[V]) const {
    load_values<T, V>(place, values);
  }
  __device__ static void keep_place(Place& place) { keep(place); }
  __device__ static acc_t<T> passed(Read read, int) { return read; }
};

// Under max merging: grad where the map won.
template <class T>
struct WonGrad {
  static constexpr bool kAttention = false;
  struct Read {
    acc_t<T> grad;
    int winner;
  };
  struct Place {
    const T* grad;
    const uint8_t* winner;
  };
  Map<const T> grad;
  Map<const uint8_t> winner;
  int64_t grad_row = bytes_between_rows(grad), winner_row = bytes_between_rows(winner);
  int64_t grad_apart = 0, winner_apart = 0;

  int64_t channel_limit() const { return std::min(a2s::channel_limit(grad), a2s::channel_limit(winner)); }
  void spread(int slots) {
    grad_apart = bytes_apart(grad, slots);
    winner_apart = bytes_apart(winner, slots);
  }
  __device__ Place place(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), row_of(winner, n, c, x, y)};
  }
  __device__ void next_row(Place& place) const { move(place, grad_row, winner_row); }
  template <bool kBeside>
  __device__ void next_channel(Place& place) const {
    place = {a2s::next_channel<kBeside>(place.grad, grad_apart),
             a2s::next_channel<kBeside>(place.winner, winner_apart)};
  }
  __device__ void read(const Place& place, Read (&values)[1]) const {
    values[0] = {static_cast<acc_t<T>>(*place.grad), *place.winner};
  }
  __device__ static void keep_place(Place& place) {
    keep(place.grad);
    keep(place.winner);
  }
  __device__ static acc_t<T> passed(Read read, int s) { return grad_if_won(read.grad, read.winner, s); }

 private:
  __device__ static void move(Place& place, int64_t in_grad, int64_t in_winner) {
    place = {moved(place.grad, in_grad), moved(place.winner, in_winner)};
  }
};

// Under attention: recalibration * grad, with the weight of the map as the factor of a pixel.
template <class T, bool kIsRecalibrated>
struct AttentionGrad {
  static constexpr bool kAttention = true, kRecalibrated = kIsRecalibrated;
  struct Read {
    acc_t<T> grad, passed;
  };
  struct Place {
    const T *grad, *recalibration;
  };
  Map<const T> grad, recalibration, weights;
  Map<T> grad_recalibration;
  int64_t grad_row = bytes_between_rows(grad), recalibration_row = bytes_between_rows(recalibration);
  int64_t grad_recalibration_row = bytes_between_rows(grad_recalibration), weight_row = bytes_between_rows(weights);
  int64_t grad_apart = 0, recalibration_apart = 0, grad_recalibration_apart = 0;

  int64_t channel_limit() const {
    const int64_t limit = std::min(a2s::channel_limit(grad), a2s::channel_limit(recalibration));
    return std::min(limit, a2s::channel_limit(grad_recalibration));
  }
  void spread(int slots) {
    grad_apart = bytes_apart(grad, slots);
    recalibration_apart = bytes_apart(recalibration, slots);
    grad_recalibration_apart = bytes_apart(grad_recalibration, slots);
  }
  // Whether threads can take V adjacent channels at once.
  template <int V>
  bool packs() const {
    const bool recalibrates = !kRecalibrated || (a2s::packs<V>(recalibration) && a2s::packs<V>(grad_recalibration));
    return a2s::packs<V>(grad) && recalibrates;
  }
  __device__ Place place(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), kRecalibrated ? row_of(recalibration, n, c, x, y) : nullptr};
  }
  __device__ void next_row(Place& place) const { move(place, grad_row, recalibration_row); }
  template <bool kBeside>
  __device__ void next_channel(Place& place) const {
    place.grad = a2s::next_channel<kBeside>(place.grad, grad_apart);
    if (kRecalibrated) place.recalibration = a2s::next_channel<kBeside>(place.recalibration, recalibration_apart);
  }
  template <int V>
  __device__ void read(const Place& place, Read (&values)[V]) const {
    acc_t<T> of_grad[V], factor[V];
    load_values<T, V>(place.grad, of_grad);
    if (kRecalibrated) load_values<T, V>(place.recalibration, factor);
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = {of_grad[j], kRecalibrated ? of_grad[j] * factor[j] : of_grad[j]};
  }
  __device__ static void keep_place(Place& place) {
    keep(place.grad);
    if (kRecalibrated) keep(place.recalibration);
  }
  __device__ static acc_t<T> passed(Read read, int) { return read.passed; }
  __device__ const T* weight(int n, int s, int x, int y) const { return row_of(weights, n, s, x, y); }

 private:
  __device__ static void move(Place& place, int64_t in_grad, int64_t in_recalibration) {
    place.grad = moved(place.grad, in_grad);
    if (kRecalibrated) place.recalibration = moved(place.recalibration, in_recalibration);
  }
};

// `map`, or a copy of it, in which the channels of a pixel are adjacent if they are in some of the scores.
inline Tensor with_channels_as_in(const std::vector<Tensor>& scores, const Tensor& map) {
  const bool interleaved = std::any_of(scores.begin(), scores.end(), is_channels_last);
  if (!interleaved || map.stride(1) == 1 || map.numel() == 0) return map;
  return torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Stores what outputs pass to map s. Threads take adjacent pixels, or channels of a pixel.
template <class T, class Value>
struct PassArguments {
  Value value;
  int s;
  Map<T> out;
  Tiling tiling;
  Places places;
  bool interleaved;
};

template <class T, class Value>
__global__ void __launch_bounds__(kBlockThreads) pass_back(const __grid_constant__ PassArguments<T, Value> a) {
  const Tile tile = a.tiling.tile(blockIdx.x);
  int inner = threadIdx.x;
  const int outer = a.places.by_inner.split(inner);
  const int column = a.interleaved ? outer : inner, channel = a.interleaved ? inner : outer;
  if (column >= tile.width || channel >= tile.channels) return;
  const int x = tile.x + column, c = tile.c + channel;
  typename Value::Read read[1];
  a.value.read(a.value.place(tile.n, c, x, tile.y), read);
  auto passed = a.value.passed(read[0], a.s);
  if constexpr (Value::kAttention) passed *= static_cast<acc_t<T>>(*a.value.weight(tile.n, a.s, x, tile.y));
  *place_in(a.out, tile.n, c, x, tile.y) = static_cast<T>(passed);
}

template <class T, class Value>
void launch_pass_back(const Tensor& on, const Value& value, int s, const Map<T>& out) {
  PassArguments<T, Value> a{value, s, out};
  a.interleaved = is_interleaved(out);
  const int inner = balanced(a.interleaved ? out.c : out.w, kBlockThreads), outer = kBlockThreads / inner;
  const int columns = a.interleaved ? outer : inner, channels = a.interleaved ? inner : outer;
  a.tiling = Tiling(out.n, out.h, out.w, out.c, 1, columns, channels);
  a.places = Places(columns, channels, a.interleaved);
  launch(on, a.tiling.blocks(), kBlockThreads, 0, pass_back<T, Value>, a);
}

// The scores of merges that do not read them in their backward pass.
template <class T>
struct NoScores {
  Map<const T> map(int) const { return {}; }
  bool gathers(int) const { return true; }
  std::nullptr_t dots_of(const std::vector<PairedMap<T>>&, const OwnMap<T>&) { return nullptr; }
  void add_plain(const std::vector<int>&) {}
};

// Fills the gradients of the scores with `scale` times what outputs pass back. Resized maps are gathered in pairs, each
// with a map that keeps its size. What outputs pass to other maps is stored first: doubles, maps that are larger than
// the outputs, those that are far smaller, and what `scores` cannot gather. Under attention `scores` gets the dot
// products with grad.
template <class T, class Value, class Scores>
void gather_scores(const Tensor& grad, const std::vector<Tensor>& grad_scores, float scale, const Value& value,
                   Scores&& scores) {
  const int64_t height = grad.size(2), width = grad.size(3);
  const auto map = [&](int s) { return map_of<T>(grad_scores[s]); };
  struct Maps {
    std::vector<int> resized, own;
  };
  Maps planar, interleaved;
  std::vector<int> plain;
  for (int s = 0; s < static_cast<int>(grad_scores.size()); ++s) {
    const Resize resize(map(s).h, map(s).w, height, width);
    Maps& maps = is_interleaved(map(s)) ? interleaved : planar;
    if (sizeof(T) == 8 || !pairs(resize) || !scores.gathers(s)) plain.push_back(s);
    else (resize.copies ? maps.own : maps.resized).push_back(s);
  }
  const auto all_plain = [&](Maps& maps) {
    for (auto* of : {&maps.resized, &maps.own}) {
      plain.insert(plain.end(), of->begin(), of->end());
      of->clear();
    }
  };
  if constexpr (Value::kAttention) {
    // The gradient of the recalibration takes all maps at once, in its own layout.
    const Maps& maps = is_interleaved(value.grad_recalibration) ? interleaved : planar;
    const bool one_launch = plain.empty() && maps.resized.size() <= 2 && maps.own.size() <= 1 &&
                            maps.resized.size() + maps.own.size() == grad_scores.size();
    if (Value::kRecalibrated && !one_launch) {
      all_plain(planar);
      all_plain(interleaved);
    }
  }
  const auto gather = [&](auto layout, Maps& maps) {
    if constexpr (sizeof(T) < 8) {
      while (!maps.resized.empty()) {
        std::vector<PairedMap<T>> pair;
        for (; !maps.resized.empty() && pair.size() < 2; maps.resized.pop_back()) {
          const int s = maps.resized.back();
          pair.push_back({map(s), {}, s});
          pair.back().scores = scores.map(s);
        }
        OwnMap<T> own{};
        own.s = -1;
        if (!maps.own.empty()) {
          own.s = maps.own.back();
          own.out = map(own.s);
          own.scores = scores.map(own.s);
          maps.own.pop_back();
        }
        launch_gather_pair<T, decltype(layout)::value>(grad, pair, own, height, width, scale, value,
                                                       scores.dots_of(pair, own));
      }
    }
    all_plain(maps);
  };
  gather(std::false_type{}, planar);
  gather(std::true_type{}, interleaved);
  if (plain.empty()) return;
  scores.add_plain(plain);
  std::vector<Tensor> passed, gathered;
  for (const int s : plain) {
    if constexpr (std::is_same_v<Value, AverageGrad<T>>) {
      passed.push_back(grad);
    } else if (map(s).h == height && map(s).w == width) {
      launch_pass_back(grad, value, s, map(s));
      continue;
    } else {
      passed.push_back(empty_map(grad_scores[s], map(s).n, map(s).c, height, width));
      launch_pass_back(grad, value, s, map_of<T>(passed.back()));
    }
    gathered.push_back(grad_scores[s]);
  }
  if (!passed.empty()) interp_adjoint(passed, gathered, scale);
}

}  // namespace a2s
