// Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis 2010), as in the dense CRF of Krähenbühl and
// Koltun (2011), whose program the authors ran.
//
// A point of a d-dimensional feature space lies in a simplex of d + 1 lattice vertices. Filtering has three steps.
// Splat: each point's row is added to its vertices' rows, with its barycentric weights. Blur: along each of the d + 1
// axes of the lattice in turn, a vertex's row becomes row + (row before + row after) / 2. Slice: a point's row is the
// sum of its vertices' rows, with the same weights. A vertex exists only if it belongs to the simplex of a point; the
// rows of all others are 0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "passes.h"

namespace a2s::crf {

class Lattice {
 public:
  // A filter for `points` points, whose features are in standard deviations and whose rows have `channels` channels.
  // Throws std::invalid_argument if the features spread too far. Instantiated for d = 2 and 5.
  template <size_t d>
  Lattice(const std::array<float, d>* features, int64_t points, int channels, int threads);

  // Splats the rows of the points, and blurs.
  void filter(const Matrix& points, int threads);

  // Scales all slices from now on by weight / row[channel], where row[channel] is the one of the last filtering.
  void normalise(int channel, float weight, int threads);

  // The filtered rows of the points.
  Slice slice() const { return {&values_, slice_.get(), corners_}; }

 private:
  void sort_by_vertex();

  int64_t points_, vertices_;                 // vertex 0 stands for all that do not exist
  int corners_;                               // d + 1
  std::unique_ptr<Share[]> slice_;            // (points, corners): the vertices of each point
  std::unique_ptr<Share[]> splat_;            // the transpose: the points of each vertex, in ascending order
  std::vector<int64_t> splat_begin_;          // (vertices + 1)
  std::unique_ptr<Neighbours[]> neighbours_;  // (corners, vertices)
  Matrix values_, spare_;                       // (vertices)
};

}  // namespace a2s::crf
