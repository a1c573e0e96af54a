// Caffe's Interp layer: the rule of one axis, and the arithmetic of one element.
//
// Bilinear sampling with aligned corners. Along an axis of `in` pixels resized to `out`:
//   ratio = (in - 1) / (out - 1), 0 if out is 1;  position(o) = ratio * o;  low(o) = trunc(position);
//   high(o) = min(low + 1, in - 1);  lambda(o) = position - low          all in float32, whatever the dtype
//   y[n, c, i, j] = (1 - li) ((1 - lj) x[low_i, low_j] + lj x[low_i, high_j])
//                 +      li  ((1 - lj) x[high_i, low_j] + lj x[high_i, high_j])
// A map that keeps its size is copied.
#pragma once

#include <vector>

#include "../support/check.h"
#include "../support/tensor.h"

namespace a2s {

// The two inputs that an output reads along one axis. `lambda` is the weight of `high`.
struct Tap {
  int32_t low, high;
  float lambda;
};

// One axis of a resize.
struct Axis {
  int64_t in, out;
  float ratio, inverse;

  Axis() = default;
  Axis(int64_t in_length, int64_t out_length)
      : in(in_length),
        out(out_length),
        ratio(out_length > 1 ? static_cast<float>(in_length - 1) / static_cast<float>(out_length - 1) : 0.f),
        inverse(ratio > 0.f ? 1.f / ratio : 0.f) {}

  A2S_HD float position(int64_t o) const { return exact_mul(ratio, static_cast<float>(o)); }
  A2S_HD int64_t low(int64_t o) const { return static_cast<int64_t>(position(o)); }

  A2S_HD Tap tap(int64_t o) const {
    const auto l = static_cast<int32_t>(low(o));
    return {l, l < in - 1 ? l + 1 : l, exact_sub(position(o), static_cast<float>(l))};
  }

  // The weight of input i in output o.
  template <class Acc>
  A2S_HD Acc weight(int64_t o, int64_t i) const {
    const Tap t = tap(o);
    const Acc lambda = t.lambda;
    return (t.low == i ? 1 - lambda : Acc(0)) + (t.high == i ? lambda : Acc(0));
  }

  // The readers of input i: the outputs [first, last] that have it as low or high neighbour, none if first > last. The
  // inverse gives a first guess. The exact rule corrects it, since low() never decreases.
  A2S_HD void readers(int64_t i, int64_t& first, int64_t& last) const {
    first = 0;
    last = out - 1;
    if (ratio > 0.f) {
      first = clamped((i - 1) * inverse);
      last = clamped((i + 1) * inverse);
    }
    while (first > 0 && low(first - 1) >= i - 1) --first;
    while (first < out && low(first) < i - 1) ++first;
    while (last < out - 1 && low(last + 1) <= i) ++last;
    while (last >= 0 && low(last) > i) --last;
  }

 private:
  A2S_HD int64_t clamped(float o) const {
    return o <= 0.f ? 0 : o >= static_cast<float>(out - 1) ? out - 1 : static_cast<int64_t>(o);
  }
};

// Both axes of a resize.
struct Resize {
  Axis y, x;
  bool copies;

  Resize() = default;
  Resize(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w)
      : y(in_h, out_h), x(in_w, out_w), copies(in_h == out_h && in_w == out_w) {}
};

// Linear interpolation between two values, or between two vectors of values.
template <class V, class Acc>
A2S_HD V lerp(const V& low, const V& high, Acc lambda) {
  return (1 - lambda) * low + lambda * high;
}

// S maps that are all resized to one size.
template <class T, int S>
struct ScaleSet {
  Map<const T> map[S];
  Resize resize[S];

  ScaleSet(const std::vector<Tensor>& maps, int64_t height, int64_t width) {
    for (int s = 0; s < S; ++s) {
      map[s] = map_of<const T>(maps[s]);
      resize[s] = Resize(map[s].h, map[s].w, height, width);
    }
  }
};

// The inputs that one output pixel reads along both axes.
struct PixelTaps {
  Tap y, x;
};

A2S_HD PixelTaps taps_at(const Resize& resize, int64_t y, int64_t x) { return {resize.y.tap(y), resize.x.tap(x)}; }

// Uninitialised gradients with the shapes of `maps`, in the layout of `grad`.
inline std::vector<Tensor> empty_grads(const Tensor& grad, const std::vector<Tensor>& maps) {
  std::vector<Tensor> result;
  for (const Tensor& map : maps) {
    result.push_back(empty_map(grad, map.size(0), map.size(1), map.size(2), map.size(3)));
  }
  return result;
}

// Fills each grads_in[i] with `scale` times the adjoint of Interp of grads[i]. The library of each device defines it.
void interp_adjoint(const std::vector<Tensor>& grads, const std::vector<Tensor>& grads_in, double scale = 1);

}  // namespace a2s
