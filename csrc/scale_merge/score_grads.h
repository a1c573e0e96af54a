// What merged scores pass back to the maps that they were merged from, for the kernel that gathers it.
#pragma once

#include "../interp/launch_gather.h"
#include "scale_merge.h"

namespace a2s {

// Under attention: recalibration * grad, with the weight of the map as the factor of a pixel.
template <class T>
struct WeightedGrad {
  static constexpr bool kWeighted = true;
  Map<const T> grad, recalibration, weights;  // `weights` of this map alone; data of `recalibration` is null if none
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
};

// Under max merging: grad where the map won.
template <class T>
struct WonGrad {
  static constexpr bool kWeighted = false;
  Map<const T> grad;
  Map<const uint8_t> winner;
  int s;
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
  template <int V>
  __device__ void load(const Rows& rows, const Column& column, acc_t<T> (&v)[V]) const {
    const auto value = static_cast<acc_t<T>>(*advanced(rows.grad, column.grad));
    v[0] = grad_if_won(value, *advanced(rows.winner, column.winner), s);
  }
};

// Fills the gradients of the scores s for which gathers(s), in one launch if they have one layout. value_of(type, grad,
// s) is what outputs pass back to scores[s].
template <class ValueOf, class Gathers>
void gather_scores(const char* op, const Tensor& grad, const std::vector<Tensor>& grad_scores, const Gathers& gathers,
                   const ValueOf& value_of) {
  dispatch(op, grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto gather = [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      std::vector<Map<T>> maps;
      std::vector<int> index;
      for (size_t s = 0; s < grad_scores.size(); ++s) {
        const Map<T> map = map_of<T>(grad_scores[s]);
        if (!gathers(s) || is_interleaved(map) != kInterleaved) continue;
        maps.push_back(map);
        index.push_back(static_cast<int>(s));
      }
      if (maps.empty()) return;
      const Tensor source = addressable(grad, kInterleaved);
      launch_gather<T, 1, kInterleaved>(grad, maps, grad.size(2), grad.size(3), 1,
                                        [&](int k) { return value_of(type, source, index[k]); });
    };
    gather(std::false_type{});
    gather(std::true_type{});
  });
}

}  // namespace a2s
