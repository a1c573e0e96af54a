// GPU kernels of interp, interp_concat and their adjoint, and the host code that launches them.
#pragma once

#include <vector>

#include "../support/check.h"
#include "../support/launch.h"
#include "interp.h"

namespace a2s {

// A thread computes element (n, c, y, x) of the result.
template <class T>
struct InterpForward {
  Map<const T> in;
  Map<T> out;
  Resize resize;

  A2S_HD void operator()(int64_t i) const {
    const Element e = element_at(i, out.c, out.h, out.w, out.channels_last);
    out.at(e.n, e.c, e.y, e.x) = static_cast<T>(sample(in, resize.copies, taps_at(resize, e.y, e.x), e.n, e.c));
  }
};

// A thread owns element (n, c, i, j) of the input's gradient and gathers from the outputs that read it.
// value(n, c, y, x) is what output (y, x) passes back.
template <class T, class Value>
struct Gather {
  Value value;
  Map<T> grad_in;
  Resize resize;

  A2S_HD void operator()(int64_t i) const {
    const Element e = element_at(i, grad_in.c, grad_in.h, grad_in.w, grad_in.channels_last);
    grad_in.at(e.n, e.c, e.y, e.x) = static_cast<T>(gather<acc_t<T>>(
        resize, e.y, e.x, [&](int64_t y, int64_t x) { return value(e.n, e.c, y, x); }));
  }
};

// Fills grad_in, the gradient of a map that was resized to (height, width).
template <class Launch, class T, class Value>
void launch_gather(const Tensor& grad_in, int64_t height, int64_t width, const Value& value) {
  const Map<T> out = map_of<T>(grad_in);
  Launch::run(grad_in, out.numel(), Gather<T, Value>{value, out, Resize(out.h, out.w, height, width)});
}

// Interp itself passes the gradient back as it is.
template <class T>
struct PlainGrad {
  Map<const T> grad;

  A2S_HD acc_t<T> operator()(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return static_cast<acc_t<T>>(grad.at(n, c, y, x));
  }
};

// The uninitialised result of interp, or of its adjoint (`x` is then the gradient), once the arguments are checked.
inline Tensor empty_resized(const char* op, const char* argument, const Tensor& x, int64_t height, int64_t width) {
  check_map(op, argument, x);
  check_size(op, height, width);
  return empty_map(x, x.size(0), x.size(1), height, width);
}

template <class Launch>
void interp_into(const Tensor& x, const Tensor& y) {
  dispatch("interp", x, [&](auto type) {
    using T = typename decltype(type)::type;
    const InterpForward<T> kernel{map_of<const T>(x), map_of<T>(y), Resize(x.size(2), x.size(3), y.size(2), y.size(3))};
    Launch::run(x, kernel.out.numel(), kernel);
  });
}

template <class Launch>
Tensor interp(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  interp_into<Launch>(x, y);
  return y;
}

template <class Launch>
Tensor interp_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_x = empty_resized("interp_backward", "grad", grad, height, width);
  dispatch("interp_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_gather<Launch, T>(grad_x, grad.size(2), grad.size(3), PlainGrad<T>{map_of<const T>(grad)});
  });
  return grad_x;
}

// The result of interp_concat, to be filled slice by slice.
inline Tensor empty_concat(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  check(!features.empty(), "a2s::interp_concat: features must be a list of at least one map.");
  int64_t channels = 0;
  for (const Tensor& feature : features) {
    check_map("interp_concat", "features", feature);
    check_matches("interp_concat", "features", feature, features[0]);
    channels += feature.size(1);
  }
  check_size("interp_concat", height, width);
  return empty_map(features[0], features[0].size(0), channels, height, width);
}

// Calls fill(feature, its slice of y's channels) for every feature.
template <class Fill>
void for_each_slice(const std::vector<Tensor>& features, Tensor& y, const Fill& fill) {
  int64_t first = 0;
  for (const Tensor& feature : features) {
    fill(feature, torch::stable::narrow(y, 1, first, feature.size(1)));
    first += feature.size(1);
  }
}

template <class Launch>
Tensor interp_concat(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  Tensor y = empty_concat(features, height, width);
  for_each_slice(features, y, interp_into<Launch>);
  return y;
}

}  // namespace a2s
