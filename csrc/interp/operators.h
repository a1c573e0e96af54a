// The operators interp and interp_concat and their adjoints: checks of arguments and allocation of results. The library
// of each device defines resize_into and interp_adjoint, and registers the operators.
#pragma once

#include "../support/check.h"
#include "interp.h"

namespace a2s {

// Resizes each x[i] into y[i], which may be a slice of a map's channels.
void resize_into(const std::vector<Tensor>& x, const std::vector<Tensor>& y);

// The uninitialised result of interp or, with `x` the gradient of its result, of its adjoint. Checks the arguments.
inline Tensor empty_resized(const char* op, const char* argument, const Tensor& x, int64_t height, int64_t width) {
  check_map(op, argument, x);
  check_size(op, height, width);
  return empty_map(x, x.size(0), x.size(1), height, width);
}

inline Tensor interp(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  resize_into({x}, {y});
  return y;
}

inline Tensor interp_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_x = empty_resized("interp_backward", "grad", grad, height, width);
  interp_adjoint({grad}, {grad_x});
  return grad_x;
}

// The sum of the features' channels. They must be maps that match `map`.
inline int64_t concat_channels(const char* op, const std::vector<Tensor>& features, const Tensor& map) {
  int64_t channels = 0;
  for (const Tensor& feature : features) {
    check_map(op, "features", feature);
    check_matches(op, "features", feature, map);
    channels += feature.size(1);
  }
  return channels;
}

// The channels of y, or of its gradient, that belong to each feature.
inline std::vector<Tensor> slices_of(Tensor y, const std::vector<Tensor>& features) {
  std::vector<Tensor> slices;
  int64_t first = 0;
  for (const Tensor& feature : features) {
    slices.push_back(torch::stable::narrow(y, 1, first, feature.size(1)));
    first += feature.size(1);
  }
  return slices;
}

inline Tensor interp_concat(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  check(!features.empty(), "a2s::interp_concat: features must be a list of at least one map.");
  const int64_t channels = concat_channels("interp_concat", features, features[0]);
  check_size("interp_concat", height, width);
  Tensor y = empty_map(features[0], features[0].size(0), channels, height, width);
  resize_into(features, slices_of(y, features));
  return y;
}

inline std::vector<Tensor> interp_concat_backward(const Tensor& grad, const std::vector<Tensor>& features) {
  check_map("interp_concat_backward", "grad", grad);
  check(!features.empty(), "a2s::interp_concat_backward: features must be a list of at least one map.");
  const int64_t channels = concat_channels("interp_concat_backward", features, grad);
  check(grad.size(1) == channels, "a2s::interp_concat_backward: grad has ", grad.size(1), " channels, the features ",
        channels, ".");
  std::vector<Tensor> grads_in = empty_grads(grad, features);
  interp_adjoint(slices_of(grad, features), grads_in);
  return grads_in;
}

}  // namespace a2s
