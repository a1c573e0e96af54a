// The merges on a GPU, as combinations of resized maps.
#pragma once

#include "../interp/resize.h"
#include "scale_merge.h"

namespace a2s {

template <class T>
Map<const T> optional_map(const std::optional<Tensor>& tensor) {
  return tensor ? map_of<const T>(*tensor) : Map<const T>{};
}

// recalibration * sum over s of weight[s] * v[s]; the weights are made on the way, and stored.
template <class T, int S>
struct AttentionMerge {
  static constexpr bool kFactor = true, kWinner = false;
  Map<const T> logits;
  Resize weight_resize;
  Map<const T> factor;
  Map<T> weights;

  struct alignas(S > 2 ? 16 : S * sizeof(acc_t<T>)) Pixel {
    acc_t<T> w[S];
  };
  __device__ Pixel pixel(int n, int y, int x, bool stores) const {
    Pixel pixel;
    weights_at(logits, weight_resize, n, y, x, pixel.w);
    if (stores) {
#pragma unroll
      for (int s = 0; s < S; ++s) weights.at(n, s, y, x) = static_cast<T>(pixel.w[s]);
    }
    return pixel;
  }
  __device__ acc_t<T> value(const Pixel& pixel, const acc_t<T> (&v)[S], acc_t<T>&) const {
    return weighted_sum(pixel.w, v);
  }
};

template <class T, int S>
struct AverageMerge {
  static constexpr bool kFactor = false, kWinner = false;
  acc_t<T> factor;

  struct Pixel {};
  __device__ acc_t<T> value(const Pixel&, const acc_t<T> (&v)[S], acc_t<T>&) const { return average(v, factor); }
};

template <class T, int S>
struct MaxMerge {
  static constexpr bool kFactor = false, kWinner = true;

  struct Pixel {};
  __device__ acc_t<T> value(const Pixel&, const acc_t<T> (&v)[S], acc_t<T>& winner) const { return largest(v, winner); }
};

// The maps of `scores`, with rows that 32-bit offsets reach.
inline std::vector<Tensor> addressable_all(const std::vector<Tensor>& scores, bool interleaved) {
  std::vector<Tensor> result;
  for (const Tensor& score : scores) result.push_back(addressable(score, interleaved));
  return result;
}

// Launches the merge of `scores` into `merged`; op_of(type, count) makes the Op.
template <class OpOf>
void launch_merge(const char* op, const std::vector<Tensor>& scores, const Tensor& merged, const Tensor* winner,
                  const OpOf& op_of) {
  dispatch_merge(op, scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const Map<T> out = map_of<T>(merged);
    const std::vector<Tensor> from = addressable_all(scores, is_interleaved(out));
    const ScaleSet<T, S> scales(from, out.h, out.w);
    dispatch_layout(out, [&](auto interleaved) {
      launch_resize<T, S, 1, decltype(interleaved)::value>(merged, scales, op_of(type, count), out,
                                                           winner ? map_of<uint8_t>(*winner) : Map<uint8_t>{});
    });
  });
}

}  // namespace a2s
