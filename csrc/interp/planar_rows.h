// The rows of Interp's result for a planar map: each lies between two source rows that are resized along their width.
#pragma once

#include <memory>

#include "rows.h"

namespace a2s {

// The columns of a planar map that is resized along its width.
template <class Acc>
struct Columns {
  using Position = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;  // as a shuffle of Acc takes it

  // Eight neighbouring results: the first of them, and the first of the eight values that hold their low neighbours and
  // of the eight that hold their high ones.
  struct Group {
    Position first, low, high;
  };

  std::vector<Position> low, high;
  std::vector<Acc> lambda;
  // Of all results, from the last to the first: where the last two overlap, the one that ends is written first, so that
  // eight results that are read together were written together. None where eight values do not hold their neighbours.
  std::vector<Group> groups;
  std::vector<Position> local_low, local_high;  // of each group's results: neighbours by their places in the eight

  explicit Columns(const Axis& axis) : low(axis.out), high(axis.out), lambda(axis.out) {
    for (int64_t x = 0; x < axis.out; ++x) {
      const Tap tap = axis.tap(x);
      low[x] = static_cast<Position>(tap.low);
      high[x] = static_cast<Position>(tap.high);
      lambda[x] = tap.lambda;
    }
    if (axis.in < kLanes || axis.out < kLanes) return;
    const auto last_start = static_cast<Position>(axis.in - kLanes);
    for (int64_t start = (axis.out - 1) / kLanes * kLanes; start >= 0; start -= kLanes) {
      const int64_t first = std::min(start, axis.out - kLanes);
      const Position from_low = std::min(low[first], last_start), from_high = std::min(high[first], last_start);
      groups.push_back({static_cast<Position>(first), from_low, from_high});
      for (int64_t x = first; x < first + kLanes; ++x) {
        local_low.push_back(low[x] - from_low);
        local_high.push_back(high[x] - from_high);
        if (local_low.back() >= kLanes || local_high.back() >= kLanes) {
          groups.clear();
          return;
        }
      }
    }
  }
};

// Resizes `source` along its width.
template <class From, class Acc>
A2S_CLONES void widen(const Columns<Acc>& columns, const From* source, Acc* out) {
  const Acc* lambda = columns.lambda.data();
#if defined(__GNUC__) && !defined(__clang__)
  const auto *local_low = columns.local_low.data(), *local_high = columns.local_high.data();
  for (const auto& group : columns.groups) {
    const Lanes<Acc> l = load_lanes(lambda + group.first);
    store_values(out + group.first,
                 (1 - l) * __builtin_shuffle(load_values<Lanes<Acc>>(source + group.low), load_lanes(local_low)) +
                     l * __builtin_shuffle(load_values<Lanes<Acc>>(source + group.high), load_lanes(local_high)));
    local_low += kLanes;
    local_high += kLanes;
  }
  if (!columns.groups.empty()) return;
#endif
  const auto width = static_cast<int64_t>(columns.low.size());
  const auto *low = columns.low.data(), *high = columns.high.data();
  for (int64_t x = 0; x < width; ++x) {
    out[x] = (1 - lambda[x]) * static_cast<Acc>(source[low[x]]) + lambda[x] * static_cast<Acc>(source[high[x]]);
  }
}

// The rows of Interp's result for a planar map, each between two source rows of its own width.
template <class T>
class PlanarRows {
 public:
  using Acc = acc_t<T>;

  PlanarRows(const Map<const T>& map, const Resize& resize)
      : in_(map, false), taps_(resize.copies ? nullptr : std::make_shared<const Taps>(resize)), source_(map.w),
        copied_(taps_ ? 0 : map.w), zeros_(taps_ ? 0 : map.w), widened_(taps_ ? resize.x.out : 0) {}

  // Valid until the next call.
  Between<Acc> row(int64_t plane, int64_t y) {
    if (!taps_) return {as_acc(copy(plane, y)), zeros_.data(), 0};
    const Tap& tap = taps_->rows[y];
    enter(plane, tap.low);
    const Acc* low = widened(tap.low);
    return {low, widened(tap.high), static_cast<Acc>(tap.lambda)};
  }

  // A row of a map that is copied, as it lies in memory if possible. Valid until the next call.
  const T* copy(int64_t plane, int64_t y) {
    enter(plane, y);
    return in_.read(source(y), source_.data());
  }

 private:
  struct Taps {
    std::vector<Tap> rows;
    Columns<Acc> columns;

    explicit Taps(const Resize& resize) : columns(resize.x) {
      for (int64_t y = 0; y < resize.y.out; ++y) rows.push_back(resize.y.tap(y));
    }
  };

  void enter(int64_t plane, int64_t y) {
    if (plane == plane_) return;
    plane_ = plane;
    first_row_ = in_.start(plane, 0);
    ask_for(in_.start(plane + 1, y), kAheadBytes);
  }

  const T* source(int64_t y) const {
    const T* row = first_row_ + y * in_.row_stride();
    ask_for(reinterpret_cast<const char*>(row) + kAheadBytes, in_.values() * static_cast<int64_t>(sizeof(T)));
    return row;
  }

  const Acc* widened(int64_t y) {
    return widened_.row(plane_, y, [&](Acc* row) {
      widen(taps_->columns, in_.read(source(y), source_.data()), row);
    });
  }

  const Acc* as_acc(const T* row) {
    if constexpr (std::is_same_v<T, Acc>) return row;
    else convert(row, in_.values(), copied_.data());
    return copied_.data();
  }

  Rows<const T> in_;
  std::shared_ptr<const Taps> taps_;  // null where the map is copied; copies of this object share them
  std::vector<T> source_;
  std::vector<Acc> copied_, zeros_;
  KeptRows<Acc> widened_;
  int64_t plane_ = -1;
  const T* first_row_ = nullptr;  // of that plane
};

}  // namespace a2s
