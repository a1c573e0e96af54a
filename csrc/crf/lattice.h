// Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis 2010), as it is in Krähenbühl and Koltun's
// dense CRF (2011), whose program the authors ran.
//
// A point of a d-dimensional feature space lies in a simplex of d + 1 lattice vertices. Its row is splatted on them
// with its barycentric weights; the vertices' rows are blurred along the d + 1 axes of the lattice, one after the other:
// row + (row before + row after) / 2; and slicing takes a point's row from its vertices, with the same weights. Only
// vertices of some point's simplex exist; the others count as 0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "rows.h"
#include "team.h"

namespace a2s::crf {

class Lattice {
 public:
  // A filter for `points` points, whose features are in standard deviations and whose rows have `channels` channels.
  // Throws std::invalid_argument if the features spread too far. Instantiated for d = 2 and 5.
  template <size_t d>
  Lattice(const std::array<float, d>* features, int64_t points, int channels, Team& team);

  // Splats the rows of the points, and blurs.
  void filter(const Rows& points, Team& team);

  // From now on, slices are weight * row / row[channel], with the row[channel] of the last filtering.
  void normalise(int channel, float weight, Team& team);

  // The filtered rows of the points.
  Slice slice() const { return {&values_, slice_.get(), corners_}; }

 private:
  void sort_by_vertex();

  int64_t points_, vertices_;                 // vertex 0 stands for all that do not exist
  int corners_;                               // d + 1
  std::unique_ptr<Share[]> slice_;            // (points, corners): how much of which vertex
  std::unique_ptr<Share[]> splat_;            // the same by vertex: how much of which point, in ascending order
  std::vector<int64_t> splat_begin_;          // (vertices + 1)
  std::unique_ptr<Neighbours[]> neighbours_;  // (corners, vertices)
  Rows values_, spare_;                       // (vertices)
};

}  // namespace a2s::crf
