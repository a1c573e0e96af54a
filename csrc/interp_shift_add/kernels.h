// GPU kernels of interp_shift_add and its adjoint, and the host code that launches them. Both are flat: threads follow
// each other as the pixels or, in channels_last, the channels that they own do in memory.
#pragma once

#include "../interp/kernels.h"
#include "interp_shift_add.h"

namespace a2s {

// Where the taps of an output pixel sample their planes along one axis; a tap beyond the border is not inside.
struct ShiftedTaps {
  Tap tap[kTaps];
  bool inside[kTaps];

  A2S_HD ShiftedTaps(const Axis& axis, int64_t o) {
    for (int d = 0; d < kTaps; ++d) {
      tap[d] = axis.tap(o + d - 1);
      inside[d] = o + d >= 1 && o + d <= axis.out;
    }
  }
};

// A thread computes V adjacent channels of its pixel or, in planar maps, several channels.
template <class T, int V>
struct InterpShiftAdd {
  Map<const T> planes, base;
  Map<T> out;
  Resize resize;
  int64_t groups;

  InterpShiftAdd(const Tensor& planes_tensor, const Tensor& base_tensor, const Tensor& y)
      : planes(map_of<const T>(planes_tensor)), base(map_of<const T>(base_tensor)), out(map_of<T>(y)),
        resize(planes.h, planes.w, out.h, out.w), groups(out.channels_last ? out.c / V : channel_groups(out.c)) {}

  int64_t threads() const { return out.n * groups * out.h * out.w; }

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, groups, out.h, out.w, out.channels_last);
    const ShiftedTaps y(resize.y, e.y), x(resize.x, e.x);
    for (int64_t c = e.c * V; c < out.c; c += groups * V) {
      Acc sum[V];
      const auto start = Pack<const T, V>::load(&base.at(e.n, c, e.y, e.x));
      for (int k = 0; k < V; ++k) sum[k] = static_cast<Acc>(start.v[k]);
      for (int dx = 0; dx < kTaps; ++dx) {
        if (!x.inside[dx]) continue;
        Acc low[V] = {}, high[V] = {};
        for (int dy = 0; dy < kTaps; ++dy) {
          if (!y.inside[dy]) continue;
          const auto load = [&](int64_t row, int64_t column) {
            return Pack<const T, V>::load(&planes.at(e.n, (kTaps * dy + dx) * out.c + c, row, column));
          };
          const auto a00 = load(y.tap[dy].low, x.tap[dx].low), a01 = load(y.tap[dy].low, x.tap[dx].high);
          const auto a10 = load(y.tap[dy].high, x.tap[dx].low), a11 = load(y.tap[dy].high, x.tap[dx].high);
          const Acc ly = y.tap[dy].lambda;
          for (int k = 0; k < V; ++k) {
            low[k] += (1 - ly) * static_cast<Acc>(a00.v[k]) + ly * static_cast<Acc>(a10.v[k]);
            high[k] += (1 - ly) * static_cast<Acc>(a01.v[k]) + ly * static_cast<Acc>(a11.v[k]);
          }
        }
        const Acc lx = x.tap[dx].lambda;
        for (int k = 0; k < V; ++k) sum[k] += (1 - lx) * low[k] + lx * high[k];
      }
      Pack<T, V> result;
      for (int k = 0; k < V; ++k) result.v[k] = static_cast<T>(sum[k]);
      result.store(&out.at(e.n, c, e.y, e.x));
    }
  }
};

// A thread owns a pixel of V adjacent channels in the planes of all taps, and visits the outputs that read it.
template <class T, int V>
struct InterpShiftAddBackward {
  Map<const T> grad;
  Map<T> grad_planes;
  Resize resize;

  InterpShiftAddBackward(const Tensor& grad_tensor, const Tensor& grad_planes_tensor)
      : grad(map_of<const T>(grad_tensor)), grad_planes(map_of<T>(grad_planes_tensor)),
        resize(grad_planes.h, grad_planes.w, grad.h, grad.w) {}

  int64_t threads() const { return grad.n * (grad.c / V) * grad_planes.h * grad_planes.w; }

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, grad.c / V, grad_planes.h, grad_planes.w, grad_planes.channels_last);
    int64_t y_first, y_last, x_first, x_last;
    resize.y.readers(e.y, y_first, y_last);
    resize.x.readers(e.x, x_first, x_last);
    Acc sum[kTaps * kTaps][V] = {};
    for (int64_t v = y_first; v <= y_last; ++v) {
      for (int64_t u = x_first; u <= x_last; ++u) {
        const Acc weight = resize.y.template weight<Acc>(v, e.y) * resize.x.template weight<Acc>(u, e.x);
        for (int tap = 0; tap < kTaps * kTaps; ++tap) {
          const int64_t y = v + 1 - tap / kTaps, x = u + 1 - tap % kTaps;
          if (y < 0 || y >= grad.h || x < 0 || x >= grad.w) continue;
          const auto g = Pack<const T, V>::load(&grad.at(e.n, e.c * V, y, x));
          for (int k = 0; k < V; ++k) sum[tap][k] += weight * static_cast<Acc>(g.v[k]);
        }
      }
    }
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      Pack<T, V> result;
      for (int k = 0; k < V; ++k) result.v[k] = static_cast<T>(sum[tap][k]);
      result.store(&grad_planes.at(e.n, tap * grad.c + e.c * V, e.y, e.x));
    }
  }
};

template <class Launch>
Tensor interp_shift_add(const Tensor& planes, const Tensor& base) {
  Tensor y = empty_shift_add(planes, base);
  dispatch("interp_shift_add", planes, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPackBytes / sizeof(T);
    if (packs<V>(map_of<const T>(planes)) && packs<V>(map_of<const T>(base)) && packs<V>(map_of<T>(y))) {
      const InterpShiftAdd<T, V> kernel(planes, base, y);
      Launch::run(planes, kernel.threads(), kernel);
    } else {
      const InterpShiftAdd<T, 1> kernel(planes, base, y);
      Launch::run(planes, kernel.threads(), kernel);
    }
  });
  return y;
}

template <class Launch>
Tensor interp_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPackBytes / sizeof(T);
    if (packs<V>(map_of<const T>(grad)) && packs<V>(map_of<T>(grad_planes))) {
      const InterpShiftAddBackward<T, V> kernel(grad, grad_planes);
      Launch::run(grad, kernel.threads(), kernel);
    } else {
      const InterpShiftAddBackward<T, 1> kernel(grad, grad_planes);
      Launch::run(grad, kernel.threads(), kernel);
    }
  });
  return grad_planes;
}

}  // namespace a2s
