// What merged scores pass back to the maps that they were merged from, for the kernels that gather it: for all maps or,
// after of_map(s), for one.
#pragma once

#include "../interp/launch_gather.h"
#include "gather_pair.h"
#include "scale_merge.h"

namespace a2s {

// Under attention: recalibration * grad, with the weight of the map as the factor of a pixel.
template <class T>
struct WeightedGrad {
  static constexpr bool kWeighted = true;
  Map<const T> grad, recalibration, weights;  // data of `recalibration` is null if there is none
  int recalibrates = recalibration.data != nullptr;
  int64_t next_grad = bytes_between_rows(grad), next_recalibration = bytes_between_rows(recalibration);
  int64_t next_weight = bytes_between_rows(weights);

  struct Rows {
    const T *grad, *recalibration, *weight;
  };
  struct Column {
    uint32_t grad, recalibration;
  };
  int64_t channel_limit() const { return std::min(a2s::channel_limit(grad), a2s::channel_limit(recalibration)); }
  __device__ Rows rows(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), recalibrates ? row_of(recalibration, n, c, x, y) : nullptr,
            row_of(weights, n, 0, x, y)};
  }
  __device__ void next(Rows& rows) const {
    rows.grad = moved(rows.grad, next_grad);
    rows.weight = moved(rows.weight, next_weight);
    if (recalibrates) rows.recalibration = moved(rows.recalibration, next_recalibration);
  }
  __device__ Column column(int c, int, int x) const { return {offset_in(grad, c, x), offset_in(recalibration, c, x)}; }
  __device__ uint32_t pixel(int x) const { return offset_in(weights, 0, x); }
  __device__ acc_t<T> weight(const Rows& rows, uint32_t pixel) const {
    return static_cast<acc_t<T>>(*advanced(rows.weight, pixel));
  }
  template <int V>
  __device__ void load(const Rows& rows, const Column& column, acc_t<T> (&v)[V]) const {
    v[0] = static_cast<acc_t<T>>(*advanced(rows.grad, column.grad));
    if (recalibrates) v[0] *= static_cast<acc_t<T>>(*advanced(rows.recalibration, column.recalibration));
  }
  WeightedGrad of_map(int s) const { return {grad, recalibration, channels_of(weights, s, 1)}; }
};

// Under max merging: grad where the map won.
template <class T>
struct WonGrad {
  static constexpr bool kWeighted = false;
  struct Read {
    acc_t<T> grad;
    int winner;
  };
  Map<const T> grad;
  Map<const uint8_t> winner;
  int s = 0;  // of the only map
  int64_t next_grad = bytes_between_rows(grad), next_winner = bytes_between_rows(winner);

  struct Rows {
    const T* grad;
    const uint8_t* winner;
  };
  struct Column {
    uint32_t grad, winner;
  };
  int64_t channel_limit() const { return std::min(a2s::channel_limit(grad), a2s::channel_limit(winner)); }
  __device__ Rows rows(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y), row_of(winner, n, c, x, y)};
  }
  __device__ void next(Rows& rows) const {
    rows.grad = moved(rows.grad, next_grad);
    rows.winner = moved(rows.winner, next_winner);
  }
  __device__ Column column(int c, int, int x) const { return {offset_in(grad, c, x), offset_in(winner, c, x)}; }
  __device__ Read read(const Rows& rows, const Column& column) const {
    return {static_cast<acc_t<T>>(*advanced(rows.grad, column.grad)), *advanced(rows.winner, column.winner)};
  }
  __device__ static acc_t<T> passed(Read read, int s) { return grad_if_won(read.grad, read.winner, s); }
  template <int V>
  __device__ void load(const Rows& rows, const Column& column, acc_t<T> (&v)[V]) const {
    v[0] = passed(read(rows, column), s);
  }
  WonGrad of_map(int map) const { return {grad, winner, map}; }
};

// Under the average: grad.
template <class T>
struct AverageGrad : PlainGrad<T> {
  using Read = acc_t<T>;

  __device__ Read read(const T* row, uint32_t column) const { return static_cast<Read>(*advanced(row, column)); }
  __device__ static Read passed(Read read, int) { return read; }
  AverageGrad of_map(int) const { return *this; }
};

// Fills the gradients of the scores s for which gathers(s) with `scale` times what outputs pass back. Unless pixels
// have weights, resized maps are gathered in pairs, each with a map that keeps its size; all others in one launch.
// value_of(type, grad) is the Value.
template <class Gathers, class ValueOf>
void gather_scores(const char* op, const Tensor& grad, const std::vector<Tensor>& grad_scores, float scale,
                   const Gathers& gathers, const ValueOf& value_of) {
  dispatch(op, grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t height = grad.size(2), width = grad.size(3);
    const auto gather = [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      std::vector<int> paired, copied, single;
      const auto map = [&](int s) { return map_of<T>(grad_scores[s]); };
      for (int s = 0; s < static_cast<int>(grad_scores.size()); ++s) {
        if (!gathers(s) || is_interleaved(map(s)) != kInterleaved) continue;
        const Resize resize(map(s).h, map(s).w, height, width);
        (resize.copies ? copied : pairs(resize.y) && pairs(resize.x) ? paired : single).push_back(s);
      }
      if (paired.empty() && copied.empty() && single.empty()) return;
      const Tensor source = addressable(grad, kInterleaved);
      const auto value = value_of(type, source);
      if constexpr (!decltype(value)::kWeighted) {
        for (; paired.size() >= 2; paired.resize(paired.size() - 2)) {
          const int index[2] = {paired[paired.size() - 2], paired.back()};
          const Map<T> maps[2] = {map(index[0]), map(index[1])};
          const int s = copied.empty() ? -1 : copied.back();
          const Map<T> kept = s < 0 ? Map<T>{} : map(s);
          if (s >= 0) copied.pop_back();
          launch_gather_pair<T, kInterleaved>(grad, maps, index, kept, s, height, width, scale, value);
        }
      }
      single.insert(single.end(), paired.begin(), paired.end());
      single.insert(single.end(), copied.begin(), copied.end());
      std::vector<Map<T>> maps;
      for (const int s : single) maps.push_back(map(s));
      if (maps.empty()) return;
      launch_gather<T, 1, kInterleaved>(grad, maps, height, width, scale,
                                        [&](int i) { return value.of_map(single[i]); });
    };
    gather(std::false_type{});
    gather(std::true_type{});
  });
}

}  // namespace a2s
