// Winograd's minimal filtering F(2x2, 3x3) for 3x3 convolutions of stride 1 (Lavin and Gray, CVPR 2016).
//
// A tile of 2x2 results depends on 4x4 inputs. By definition it takes 4 * 9 = 36 multiplications per pair of input and
// output channel. After a transform of the inputs and of the filter it takes 16, one for each of 16 `points`:
//
//   input    v = B' x B   B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]     x: a tile's 4x4 inputs of one channel
//   filter   u = G w G'   G  = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]   w: a filter's 3x3 window on that channel
//   product  m[f] = sum over channels c of u[f, c] v[c]                    point by point
//   output   y = A' m A   A' = [1 1 1 0; 0 1 -1 -1]                        y: the tile's 2x2 results
//
// The product of one point, over all tiles and channels, is a matrix product, which torch computes. The transforms of
// inputs and outputs are additions only. They are here, as three operators for channels_last maps on the CPU:
//
//   winograd_input         x -> v, of each tile
//   winograd_output        m -> y, of each tile, plus the bias
//   winograd_output_grad   the adjoint of winograd_output: g -> A g A'
//
// a2s_repro/ops/winograd.py transforms the filters, calls the operators and torch's matrix products, and decides which
// convolutions take this way. A2S_WINOGRAD=0 in the environment turns it off.
//
// Gradients. Point by point, the gradient of u is the sum over tiles of the gradient of m times v. The gradient of the
// input is the convolution of the result's gradient by the mirrored filters, with input and output channels exchanged.
// To mirror a filter is to exchange points 0 and 3 of u along both axes; `mirrored` exchanges those of v and m instead,
// so that u serves both passes.
//
// Dilation. A convolution of dilation d is d x d convolutions on separate grids, each of every d-th pixel. The 2x2
// results of a tile are d pixels apart, and its 4x4 inputs begin d pixels before the first result along either axis.
// Inputs outside the map are 0; results outside it are dropped.
//
// Points are stored as (16, tiles, C), for consecutive tiles of a map. Tiles are numbered by image, row and column.
#pragma once

#include <algorithm>
#include <vector>

#include "../support/check.h"

namespace a2s {

constexpr int kPoints = 4;  // along either axis
constexpr int kResults = 2;

// The coordinates of the tiles' first results along an axis of `size` pixels, grid after grid.
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

// `points` must belong to tiles of the channels_last `map`, beginning with tile `first`.
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
