// Rows of several maps resized to one grid, and what is done to their values.
#pragma once

#include "interleaved_rows.h"
#include "planar_rows.h"

namespace a2s {

// The values of S maps at a lane of a pixel, or at eight. FirstCopies: the first map is not resized.
template <bool FirstCopies, class V, class Acc, size_t S>
void values_at(const std::array<Quad<Acc>, S>& quads, int64_t lane, V (&v)[S]) {
  v[0] = quads[0].template at<V, FirstCopies>(lane);
  for (size_t s = 1; s < S; ++s) v[s] = quads[s].template at<V>(lane);
}

// Calls op.pixel(x) at each pixel of a row, and what that gives as value(i, v) for every value i of the row, or for eight
// at once: v[s] is the value of map s. FirstCopies: the first map is not resized.
template <bool FirstCopies, class Acc, size_t S, class Op>
A2S_CLONES void resize_row(const std::array<PlanarRow<Acc>, S>& rows, int64_t width, const Op op) {
  PlanarRow<Acc> row[S];  // member by member, as they were stored just now: wider loads would wait for that
  for (size_t s = 0; s < S; ++s) {
    row[s].low = rows[s].low;
    row[s].high = rows[s].high;
    row[s].lambda = rows[s].lambda;
  }
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc v[S];
    for (size_t s = 0; s < S; ++s) v[s] = FirstCopies && s == 0 ? row[s].low[x] : row[s].at(x);
    op.pixel(x)(x, v);
  }
}

template <bool FirstCopies, class Acc, size_t S, class Op>
A2S_CLONES void resize_row(const std::array<InterleavedRow<Acc>, S> rows, int64_t width, const Op op) {
  const int64_t lanes = rows[0].lanes;
  for (int64_t x = 0; x < width; ++x) {
    std::array<Quad<Acc>, S> quads;
    for (size_t s = 0; s < S; ++s) quads[s] = rows[s].at(x);
    const auto value = op.pixel(x);
    for_each_value<Acc>(lanes, [&](int64_t l, auto kind) {
      decltype(kind) v[S];
      values_at<FirstCopies>(quads, l, v);
      value(x * lanes + l, v);
    });
  }
}

// The rows of S maps resized to one grid.
template <class T, int S>
class ScaleRows {
 public:
  using Acc = acc_t<T>;

  ScaleRows(const ScaleSet<T, S>& scales, bool interleaved)
      : first_copies_(scales.resize[0].copies), width_(scales.resize[0].x.out) {
    for (int s = 0; s < S; ++s) {
      if (interleaved) interleaved_.emplace_back(scales.map[s], scales.resize[s]);
      else planar_.emplace_back(scales.map[s], scales.resize[s]);
    }
  }

  // Calls body(FirstCopies, rows, width) with rows y of a plane, planar or interleaved.
  template <class Body>
  void visit(int64_t plane, int64_t y, const Body& body) {
    const auto call = [&](const auto& rows) {
      if (first_copies_) body(std::true_type{}, rows, width_);
      else body(std::false_type{}, rows, width_);
    };
    if (planar_.empty()) call(rows_of(interleaved_, plane, y));
    else call(rows_of(planar_, plane, y));
  }

  // Does `op` to row y of a plane.
  template <class Op>
  void row(int64_t plane, int64_t y, const Op& op) {
    visit(plane, y, [&](auto first_copies, const auto& rows, int64_t width) {
      resize_row<decltype(first_copies)::value>(rows, width, op);
    });
  }

 private:
  template <class ScaleRow>
  static auto rows_of(std::vector<ScaleRow>& scales, int64_t plane, int64_t y) {
    std::array<decltype(scales[0].row(plane, y)), S> rows;
    for (int s = 0; s < S; ++s) rows[s] = scales[s].row(plane, y);
    return rows;
  }

  bool first_copies_;
  int64_t width_;
  std::vector<PlanarRows<T>> planar_;
  std::vector<InterleavedRows<T>> interleaved_;
};

}  // namespace a2s
