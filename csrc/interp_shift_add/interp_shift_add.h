// A 3x3 convolution of a resized map, computed from the products of its nine taps at the map's own resolution.
//
// Channel (3 dy + dx) F + f of `planes` is feature f of tap (dy, dx), for F features.
//   y[n, f, i, j] = base[n, f, i, j] + sum over dy, dx of Interp(planes)[n, (3 dy + dx) F + f, i + dy - 1, j + dx - 1]
// Interp resizes to the size of base. Beyond that size its values are 0: the padding of the convolution.
// The adjoint with respect to the planes, with Interp' for Interp's adjoint:
//   grad_planes[n, (3 dy + dx) F + f, i, j] = Interp'(grad[n, f] shifted by (dy - 1, dx - 1) and padded with 0)[i, j]
#pragma once

#include "../interp/interp.h"
#include "../support/check.h"

namespace a2s {

constexpr int kTaps = 3;  // along either axis

inline Tensor empty_shift_add(const Tensor& planes, const Tensor& base) {
  check_map("interp_shift_add", "planes", planes);
  check_map("interp_shift_add", "base", base);
  check_matches("interp_shift_add", "base", base, planes);
  check(planes.size(1) == kTaps * kTaps * base.size(1),
        "a2s::interp_shift_add: planes must have 9 channels for each of the ", base.size(1), " of base, not ",
        planes.size(1), ".");
  return empty_map(planes, base.size(0), base.size(1), base.size(2), base.size(3));
}

inline Tensor empty_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  check_map("interp_shift_add_backward", "grad", grad);
  check_size("interp_shift_add_backward", height, width);
  return empty_map(grad, grad.size(0), kTaps * kTaps * grad.size(1), height, width);
}

}  // namespace a2s
