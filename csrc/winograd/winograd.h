// Winograd's minimal filtering F(2x2, 3x3) for 3x3 convolutions of stride 1 (Lavin and Gray, CVPR 2016): a tile of 2x2
// results takes 16 products for each pair of channels instead of 36.
//
// The results of a tile lie d pixels apart, d being the filter's dilation, and its 4x4 inputs begin d before the first
// result along either axis; beyond the border inputs are 0 and results are dropped. With x a tile's input of a channel, w
// a filter's window on a channel, and m the sums over channels that a tile's result y is made of:
//   input    v = B' x B   B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]
//   filter   u = G w G'   G  = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]
//   output   y = A' m A   A' = [1 1 1 0; 0 1 -1 -1],   m[f] = sum over c of u[f, c] v[c], point by point
// The adjoint of output is g -> A g A'. The gradient of u is, point by point, the sum over tiles of that of m times v. The
// gradient of the input is the convolution by the mirrored filters with their channels exchanged; to mirror a filter is to
// exchange points 0 and 3 of u along both axes, and `mirrored` exchanges those of v and m instead.
//
// Points are (16, tiles, C): of so many tiles of a map, from tile `first` on, in the order of images, rows, columns.
#pragma once

#include <algorithm>
#include <vector>

#include "../support/check.h"

namespace a2s {

constexpr int kPoints = 4;  // along either axis
constexpr int kResults = 2;

// The first results of the tiles along an axis of `size` pixels: of each of the grids that the dilation sets apart.
inline std::vector<int64_t> tile_starts(int64_t size, int64_t dilation) {
  std::vector<int64_t> starts;
  for (int64_t grid = 0; grid < std::min(dilation, size); ++grid) {
    for (int64_t start = grid; start < size; start += kResults * dilation) starts.push_back(start);
  }
  return starts;
}

// B' x
struct InputTransform {
  template <class V>
  void operator()(const V (&x)[kPoints], V (&v)[kPoints]) const {
    v[0] = x[0] - x[2];
    v[1] = x[1] + x[2];
    v[2] = x[2] - x[1];
    v[3] = x[1] - x[3];
  }
};

// A' m
struct OutputTransform {
  template <class V>
  void operator()(const V (&m)[kPoints], V (&y)[kResults]) const {
    y[0] = (m[0] + m[1]) + m[2];
    y[1] = (m[1] - m[2]) - m[3];
  }
};

// A g
struct OutputGradTransform {
  template <class V>
  void operator()(const V (&g)[kResults], V (&m)[kPoints]) const {
    m[0] = g[0];
    m[1] = g[0] + g[1];
    m[2] = g[0] - g[1];
    m[3] = -g[1];
  }
};

// `points` belong to the tiles of the channels_last `map` from `first` on.
inline void check_points(const char* op, const Tensor& map, const Tensor& points, int64_t dilation, int64_t first) {
  check_map(op, "the map", map);
  check(!map.is_cuda() && map.stride(1) == 1, "a2s::", op, ": the map must be channels_last, on the CPU.");
  check(dilation >= 1, "a2s::", op, ": dilation must be at least 1, not ", dilation, ".");
  check(points.dim() == 3 && points.size(0) == kPoints * kPoints && points.size(2) == map.size(1) &&
            points.is_contiguous() && !points.is_cuda() && points.scalar_type() == map.scalar_type(),
        "a2s::", op, ": points must be contiguous, (16, tiles, ", map.size(1), "), of the map's dtype.");
  const size_t per_image = tile_starts(map.size(2), dilation).size() * tile_starts(map.size(3), dilation).size();
  const int64_t tiles = map.size(0) * static_cast<int64_t>(per_image);
  check(first >= 0 && first + points.size(1) <= tiles, "a2s::", op, ": the map has ", tiles, " tiles, not ",
        first + points.size(1), ".");
}

}  // namespace a2s
