// Rows of several maps resized to one grid, and what is done to their values.
#pragma once

#include "interleaved_rows.h"
#include "planar_rows.h"

namespace a2s {

// A row of each of S maps resized to one grid, before they are worked out; Row is Between or InterleavedRows<T>::Row.
template <class T, size_t S, class Row>
struct ScaleRow {
  std::array<Row, S> rows;
  const T* copy;  // the first map's row if that map is copied, and then rows[0] is not set
  int64_t lanes;
};

// The values of all maps along a planar row. FirstCopies: `copy` is set.
template <bool FirstCopies, class T, size_t S>
class RowValues {
 public:
  // Member by member, as they were stored just now: wider loads would wait for that.
  explicit RowValues(const ScaleRow<T, S, Between<acc_t<T>>>& row) : copy_(row.copy) {
    for (size_t s = FirstCopies; s < S; ++s) {
      rows_[s].low = row.rows[s].low;
      rows_[s].high = row.rows[s].high;
      rows_[s].lambda = row.rows[s].lambda;
    }
  }

  // At a pixel or at eight; V as in load_values.
  template <class V>
  void at(int64_t x, V (&v)[S]) const {
    if constexpr (FirstCopies) v[0] = load_values<V>(copy_ + x);
    for (size_t s = FirstCopies; s < S; ++s) v[s] = rows_[s].template at<V>(x);
  }

 private:
  const T* copy_;
  Between<acc_t<T>> rows_[S];
};

// The same of one pixel of an interleaved row.
template <bool FirstCopies, class T, size_t S>
class PixelValues {
 public:
  using Row = typename InterleavedRows<T>::Row;

  PixelValues(const ScaleRow<T, S, Row>& row, int64_t x) : copy_(FirstCopies ? row.copy + x * row.lanes : nullptr) {
    for (size_t s = FirstCopies; s < S; ++s) maps_[s] = row.rows[s].at(x);
  }

  // At a lane or at eight.
  template <class V>
  void at(int64_t lane, V (&v)[S]) const {
    if constexpr (FirstCopies) {
      __builtin_prefetch(copy_ + lane + kAheadBytes / sizeof(T));
      v[0] = load_values<V>(copy_ + lane);
    }
    for (size_t s = FirstCopies; s < S; ++s) v[s] = maps_[s].template at<V>(lane);
  }

 private:
  const T* copy_;
  decltype(std::declval<Row>().at(0)) maps_[S];
};

// Calls op.pixel<W>(x) at each pixel of a row (W = Acc), or at eight (W = Lanes<Acc>), and what that gives as
// value(i, v) for every value i of the row, or for eight at once: v[s] is the value of map s.
template <bool FirstCopies, class T, size_t S, class Op>
A2S_CLONES void resize_row(const ScaleRow<T, S, Between<acc_t<T>>>& row, int64_t width, const Op op) {
  const RowValues<FirstCopies, T, S> values(row);
  for_each_value<acc_t<T>>(width, [&](int64_t x, auto kind) {
    using V = decltype(kind);
    V v[S];
    values.at(x, v);
    op.template pixel<V>(x)(x, v);
  });
}

template <bool FirstCopies, class T, size_t S, class Op>
A2S_WIDE_CLONES void resize_row(const ScaleRow<T, S, typename InterleavedRows<T>::Row> row, int64_t width, const Op op) {
  const int64_t lanes = row.lanes;
  for (int64_t x = 0; x < width; ++x) {
    const PixelValues<FirstCopies, T, S> values(row, x);
    const auto value = op.template pixel<acc_t<T>>(x);
    for_each_value<acc_t<T>>(lanes, [&](int64_t l, auto kind) {
      decltype(kind) v[S];
      values.at(l, v);
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
      : first_copies_(scales.resize[0].copies), width_(scales.resize[0].x.out),
        lanes_(interleaved ? scales.map[0].c : 1) {
    for (int s = 0; s < S; ++s) {
      if (interleaved) interleaved_.emplace_back(scales.map[s], scales.resize[s]);
      else planar_.emplace_back(scales.map[s], scales.resize[s]);
    }
  }

  // Calls body(FirstCopies, row, width) with row y of a plane, a ScaleRow.
  template <class Body>
  void visit(int64_t plane, int64_t y, const Body& body) {
    const auto call = [&](const auto& row) {
      if (first_copies_) body(std::true_type{}, row, width_);
      else body(std::false_type{}, row, width_);
    };
    if (planar_.empty()) call(row_of(interleaved_, plane, y));
    else call(row_of(planar_, plane, y));
  }

  // Does `op` to row y of a plane.
  template <class Op>
  void row(int64_t plane, int64_t y, const Op& op) {
    visit(plane, y, [&](auto first_copies, const auto& row, int64_t width) {
      resize_row<decltype(first_copies)::value>(row, width, op);
    });
  }

 private:
  template <class MapRows>
  auto row_of(std::vector<MapRows>& maps, int64_t plane, int64_t y) {
    ScaleRow<T, S, decltype(maps[0].row(plane, y))> row;
    row.copy = first_copies_ ? maps[0].copy(plane, y) : nullptr;
    row.lanes = lanes_;
    for (int s = first_copies_; s < S; ++s) row.rows[s] = maps[s].row(plane, y);
    return row;
  }

  bool first_copies_;
  int64_t width_, lanes_;
  std::vector<PlanarRows<T>> planar_;
  std::vector<InterleavedRows<T>> interleaved_;
};

}  // namespace a2s
