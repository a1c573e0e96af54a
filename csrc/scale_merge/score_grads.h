// What merged scores pass back to the maps that they were merged from, and the gradients of these maps.
#pragma once

#include "gather_pair.h"
#include "scale_merge.h"

namespace a2s {

// Of the channel c further.
template <class T>
__device__ uint32_t held_offset(const Map<const T>& map, int c) {
  uint32_t offset = offset_in(map, c, 0);
  keep(offset);
  return offset;
}

// Under attention: recalibration * grad, with the weight of the map as the factor of a pixel.
template <class T>
struct WeightedGrad {
  static constexpr bool kWeighted = true;
  using Read = acc_t<T>;
  struct Place {
    const T *grad, *recalibration;
  };
  struct Offsets {
    uint32_t grad, recalibration;
  };
  Map<const T> grad, recalibration, weights;  // data of `recalibration` is null if there is none
  int recalibrates = recalibration.data != nullptr;
  int64_t grad_row = bytes_between_rows(grad), recalibration_row = bytes_between_rows(recalibration);
  int64_t weight_row = bytes_between_rows(weights);

  int64_t channel_limit() const { return std::min(a2s::channel_limit(grad), a2s::channel_limit(recalibration)); }
  __device__ Place place(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), recalibrates ? row_of(recalibration, n, c, x, y) : nullptr};
  }
  __device__ Offsets further(int c) const { return {held_offset(grad, c), held_offset(recalibration, c)}; }
  __device__ void down(Place& place) const {
    place.grad = moved(place.grad, grad_row);
    if (recalibrates) place.recalibration = moved(place.recalibration, recalibration_row);
  }
  template <int K>
  __device__ void read(const Place& place, const Offsets (&further)[K], Read (&v)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = static_cast<Read>(*advanced(place.grad, further[k].grad));
    if (!recalibrates) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      v[k] *= static_cast<Read>(*advanced(place.recalibration, further[k].recalibration));
    }
  }
  __device__ static Read passed(Read read, int) { return read; }
  __device__ const T* weight(int n, int s, int x, int y) const { return row_of(weights, n, s, x, y); }
};

// Under max merging: grad where the map won.
template <class T>
struct WonGrad {
  static constexpr bool kWeighted = false;
  struct Read {
    acc_t<T> grad;
    int winner;
  };
  struct Place {
    const T* grad;
    const uint8_t* winner;
  };
  struct Offsets {
    uint32_t grad, winner;
  };
  Map<const T> grad;
  Map<const uint8_t> winner;
  int64_t grad_row = bytes_between_rows(grad), winner_row = bytes_between_rows(winner);

  int64_t channel_limit() const { return std::min(a2s::channel_limit(grad), a2s::channel_limit(winner)); }
  __device__ Place place(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), row_of(winner, n, c, x, y)};
  }
  __device__ Offsets further(int c) const { return {held_offset(grad, c), held_offset(winner, c)}; }
  __device__ void down(Place& place) const {
    place.grad = moved(place.grad, grad_row);
    place.winner = moved(place.winner, winner_row);
  }
  template <int K>
  __device__ void read(const Place& place, const Offsets (&further)[K], Read (&v)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      v[k].grad = static_cast<acc_t<T>>(*advanced(place.grad, further[k].grad));
      v[k].winner = *advanced(place.winner, further[k].winner);
    }
  }
  __device__ static acc_t<T> passed(Read read, int s) { return grad_if_won(read.grad, read.winner, s); }
};

// Under the average: grad.
template <class T>
struct AverageGrad {
  static constexpr bool kWeighted = false;
  using Read = acc_t<T>;
  using Place = const T*;
  using Offsets = uint32_t;
  Map<const T> grad;
  int64_t grad_row = bytes_between_rows(grad);

  int64_t channel_limit() const { return a2s::channel_limit(grad); }
  __device__ Place place(int n, int c, int x, int y) const { return row_of(grad, n, c, x, y); }
  __device__ Offsets further(int c) const { return held_offset(grad, c); }
  __device__ void down(Place& place) const { place = moved(place, grad_row); }
  template <int K>
  __device__ void read(Place place, const Offsets (&further)[K], Read (&v)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = static_cast<Read>(*advanced(place, further[k]));
  }
  __device__ static Read passed(Read read, int) { return read; }
};

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
  a.value.read(a.value.place(tile.n, c, x, tile.y), {a.value.further(0)}, read);
  auto passed = a.value.passed(read[0], a.s);
  if constexpr (Value::kWeighted) passed *= static_cast<acc_t<T>>(*a.value.weight(tile.n, a.s, x, tile.y));
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

// Fills the gradients of the scores s for which gathers(s) with `scale` times what outputs pass back. Resized maps are
// gathered in pairs, each with a map that keeps its size. What outputs pass to other maps is stored first: doubles,
// maps that are larger than the outputs, and those that are far smaller. value_of(type) is the Value.
template <class Gathers, class ValueOf>
void gather_scores(const char* op, const Tensor& grad, const std::vector<Tensor>& grad_scores, float scale,
                   const Gathers& gathers, const ValueOf& value_of) {
  dispatch(op, grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t height = grad.size(2), width = grad.size(3);
    const auto value = value_of(type);
    using Value = std::decay_t<decltype(value)>;
    constexpr bool kPassesGrad = std::is_same_v<Value, AverageGrad<T>>;
    const auto map = [&](int s) { return map_of<T>(grad_scores[s]); };
    std::vector<Tensor> passed, gathered;
    const auto gather = [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      std::vector<int> paired, copied, single;
      for (int s = 0; s < static_cast<int>(grad_scores.size()); ++s) {
        if (!gathers(s) || is_interleaved(map(s)) != kInterleaved) continue;
        const Resize resize(map(s).h, map(s).w, height, width);
        const bool in_pairs = sizeof(T) < 8 && pairs(resize.y) && pairs(resize.x);
        (resize.copies ? copied : in_pairs ? paired : single).push_back(s);
      }
      if constexpr (sizeof(T) < 8) {
        while (!paired.empty()) {
          std::vector<int> index;
          std::vector<Map<T>> maps;
          for (; !paired.empty() && index.size() < 2; paired.pop_back()) {
            index.push_back(paired.back());
            maps.push_back(map(paired.back()));
          }
          const bool copies = !Value::kWeighted && !copied.empty();
          const int s = copies ? copied.back() : -1;
          if (copies) copied.pop_back();
          launch_gather_pair<T, kInterleaved>(grad, maps, index, copies ? map(s) : Map<T>{}, s, height, width, scale,
                                              value);
        }
      }
      single.insert(single.end(), copied.begin(), copied.end());
      for (const int s : single) {
        if constexpr (kPassesGrad) {
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
    };
    gather(std::false_type{});
    gather(std::true_type{});
    if (!passed.empty()) interp_adjoint(passed, gathered, scale);
  });
}

}  // namespace a2s
