// The rows of a planar map resized by Interp: first two source rows along their width, then between the two.
#pragma once

#include <memory>

#include "rows.h"

namespace a2s {

// Where the columns of a planar map resized along its width read their source row.
template <class Acc>
struct Columns {
  using Index = int32_t;  // the index type of a shuffle of float

  // Eight adjacent columns. Their low neighbours are among the eight source values from `low`, the high ones among the
  // eight from `high`.
  struct Group {
    Index first, low, high;
  };

  std::vector<Index> low, high;
  std::vector<Acc> lambda;
  // All columns in groups, the last group first. The last two may overlap; the one at the end of the row is then
  // written first, so that eight values which are loaded together later were stored together. Empty if eight adjacent
  // source values do not hold the neighbours of a group, or if Acc has no lanes.
  std::vector<Group> groups;
  std::vector<Index> group_low, group_high;  // each column's neighbours, counted from Group::low and Group::high

  explicit Columns(const Axis& axis);
};

// Resizes the row `source` along its width.
template <class From, class Acc>
void resize_width(const Columns<Acc>& columns, const From* source, Acc* out);

// The rows of a planar map resized by Interp.
template <class T>
class PlanarRows {
 public:
  using Acc = acc_t<T>;

  PlanarRows(const Map<const T>& map, const Resize& resize);

  // Row y of the resized plane. Valid until the next call.
  Lerp<Acc> row(int64_t plane, int64_t y) {
    if (!taps_) return {as_acc(copy(plane, y)), zeros_.data(), 0};
    const Tap& tap = taps_->rows[y];
    enter(plane, tap.low);
    const Acc* low = resized(tap.low);
    return {low, resized(tap.high), static_cast<Acc>(tap.lambda)};
  }

  // Row y of a map that keeps its size, in place if possible. Valid until the next call.
  const T* copy(int64_t plane, int64_t y) {
    enter(plane, y);
    return in_.read(source(y), source_.data());
  }

 private:
  struct Taps {
    std::vector<Tap> rows;
    Columns<Acc> columns;

    explicit Taps(const Resize& resize);
  };

  // On the first row of a plane, prefetches the start of the same row in the next plane.
  void enter(int64_t plane, int64_t y) {
    if (plane == plane_) return;
    plane_ = plane;
    first_row_ = in_.start(plane, 0);
    prefetch(in_.start(plane + 1, y), kPrefetchBytes);
  }

  const T* source(int64_t y) const {
    const T* row = first_row_ + y * in_.row_stride();
    prefetch(reinterpret_cast<const char*>(row) + kPrefetchBytes, in_.values() * static_cast<int64_t>(sizeof(T)));
    return row;
  }

  // A source row resized along its width.
  const Acc* resized(int64_t y) {
    return resized_.row(plane_, y, [&](Acc* row) {
      resize_width(taps_->columns, in_.read(source(y), source_.data()), row);
    });
  }

  const Acc* as_acc(const T* row) {
    if constexpr (std::is_same_v<T, Acc>) return row;
    else convert(row, in_.values(), copied_.data());
    return copied_.data();
  }

  Rows<const T> in_;
  std::shared_ptr<const Taps> taps_;  // shared by copies of this object; null if the map keeps its size
  std::vector<T> source_;
  std::vector<Acc> copied_, zeros_;
  RowCache<Acc> resized_;
  int64_t plane_ = -1;
  const T* first_row_ = nullptr;  // of plane_
};

}  // namespace a2s
