// The rows of several maps, all resized to one size, and loops over their values.
#pragma once

#include "interleaved_rows.h"
#include "planar_rows.h"

namespace a2s {

// One row of each of several maps, all resized to one size. Row is Lerp or InterleavedRows<T>::Row.
template <class T, class Row>
struct ScaleRow {
  std::array<Row, kMaxScales> rows;
  const T* copy;  // the row of map 0 if that map keeps its size; rows[0] is then not set
  int64_t channels;
};

// The values of S maps along a planar row. FirstCopies: map 0 keeps its size.
template <size_t S, bool FirstCopies, class T>
class RowValues {
 public:
  // Copies member by member, with the widths in which the members were just stored: a wider load would stall on them.
  explicit RowValues(const ScaleRow<T, Lerp<acc_t<T>>>& row) : copy_(row.copy) {
    for (size_t s = FirstCopies; s < S; ++s) {
      rows_[s].low = row.rows[s].low;
      rows_[s].high = row.rows[s].high;
      rows_[s].lambda = row.rows[s].lambda;
    }
  }

  // v[s] is the value of map s at pixel x, or its values from pixel x on. V as in load_values.
  template <class V>
  void at(int64_t x, V (&v)[S]) const {
    if constexpr (FirstCopies) v[0] = load_values<V>(copy_ + x);
    for (size_t s = FirstCopies; s < S; ++s) v[s] = rows_[s].template at<V>(x);
  }

 private:
  const T* copy_;
  Lerp<acc_t<T>> rows_[S];
};

// The values of S maps in one pixel of an interleaved row.
template <size_t S, bool FirstCopies, class T>
class PixelValues {
 public:
  using Row = typename InterleavedRows<T>::Row;

  PixelValues(const ScaleRow<T, Row>& row, int64_t x) : copy_(FirstCopies ? row.copy + x * row.channels : nullptr) {
    for (size_t s = FirstCopies; s < S; ++s) pixels_[s] = row.rows[s].at(x);
  }

  // v[s] is the value of map s in a channel, or its values from that channel on. V as in load_values.
  template <class V>
  void at(int64_t channel, V (&v)[S]) const {
    if constexpr (FirstCopies) {
      __builtin_prefetch(copy_ + channel + kPrefetchBytes / sizeof(T));
      v[0] = load_values<V>(copy_ + channel);
    }
    for (size_t s = FirstCopies; s < S; ++s) v[s] = pixels_[s].template at<V>(channel);
  }

 private:
  const T* copy_;
  decltype(std::declval<Row>().at(0)) pixels_[S];
};

// Applies an operator's `op` to a row: op.pixel<W, S>(x)(i, v) for every value i of the row, or for eight at once,
// where x is the pixel of value i and v[s] the value of map s. W is Acc, or Lanes<Acc> for eight pixels from x on.
template <size_t S, bool FirstCopies, class T, class Op>
A2S_CLONES static void resize_row(const ScaleRow<T, Lerp<acc_t<T>>>& row, int64_t width, const Op op) {
  const RowValues<S, FirstCopies, T> values(row);
  for_each_value<acc_t<T>>(width, [&](int64_t x, auto kind) {
    using V = decltype(kind);
    V v[S];
    values.at(x, v);
    op.template pixel<V, S>(x)(x, v);
  });
}

template <size_t S, bool FirstCopies, class T, class Op>
A2S_CLONES static void resize_row(const ScaleRow<T, typename InterleavedRows<T>::Row> row, int64_t width,
                                  const Op op) {
  const int64_t channels = row.channels;
  for (int64_t x = 0; x < width; ++x) {
    const PixelValues<S, FirstCopies, T> values(row, x);
    const auto pixel = op.template pixel<acc_t<T>, S>(x);
    for_each_value<acc_t<T>>(channels, [&](int64_t c, auto kind) {
      decltype(kind) v[S];
      values.at(c, v);
      pixel(x * channels + c, v);
    });
  }
}

// The rows of several maps, all resized to one size.
template <class T>
class ScaleRows {
 public:
  using Acc = acc_t<T>;

  ScaleRows(const std::vector<Tensor>& maps, int64_t height, int64_t width, bool interleaved)
      : count_(static_cast<int64_t>(maps.size())), width_(width), channels_(interleaved ? maps[0].size(1) : 1) {
    for (const Tensor& tensor : maps) {
      const Map<const T> map = map_of<const T>(tensor);
      const Resize resize(map.h, map.w, height, width);
      if (interleaved) interleaved_.emplace_back(map, resize);
      else planar_.emplace_back(map, resize);
    }
    first_copies_ = maps[0].size(2) == height && maps[0].size(3) == width;
  }

  // The number of maps.
  int64_t count() const { return count_; }

  // Calls body(FirstCopies, row, width), where `row` is the ScaleRow of row y of a plane.
  template <class Body>
  void visit(int64_t plane, int64_t y, const Body& body) {
    const auto call = [&](const auto& row) {
      if (first_copies_) body(std::true_type{}, row, width_);
      else body(std::false_type{}, row, width_);
    };
    if constexpr (kHasInterleavedLoops<T>) {
      if (planar_.empty()) return call(row_of(interleaved_, plane, y));
    }
    call(row_of(planar_, plane, y));
  }

  // Applies `op` to row y of a plane of S maps, as resize_row does.
  template <size_t S, class Op>
  void row(int64_t plane, int64_t y, const Op& op) {
    visit(plane, y, [&](auto first_copies, const auto& row, int64_t width) {
      resize_row<S, decltype(first_copies)::value>(row, width, op);
    });
  }

 private:
  template <class MapRows>
  auto row_of(std::vector<MapRows>& maps, int64_t plane, int64_t y) {
    ScaleRow<T, decltype(maps[0].row(plane, y))> row;
    row.copy = first_copies_ ? maps[0].copy(plane, y) : nullptr;
    row.channels = channels_;
    for (int64_t s = first_copies_; s < count_; ++s) row.rows[s] = maps[s].row(plane, y);
    return row;
  }

  int64_t count_, width_, channels_;
  bool first_copies_;
  std::vector<PlanarRows<T>> planar_;
  std::vector<InterleavedRows<T>> interleaved_;
};

}  // namespace a2s
