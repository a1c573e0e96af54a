// The rows of several maps, all resized to one size, and loops over their values.
#pragma once

#include "interleaved_rows.h"
#include "planar_rows.h"

namespace a2s {

// One row of each of S maps resized to one size. Row is Lerp or InterleavedRows<T>::Row.
template <class T, size_t S, class Row>
struct ScaleRow {
  std::array<Row, S> rows;
  const T* copy;  // the row of map 0 if that map keeps its size; rows[0] is then not set
  int64_t channels;
};

// The values of all maps along a planar row. FirstCopies: map 0 keeps its size.
template <bool FirstCopies, class T, size_t S>
class RowValues {
 public:
  // Copies member by member, with the widths in which the members were just stored: a wider load would stall on them.
  explicit RowValues(const ScaleRow<T, S, Lerp<acc_t<T>>>& row) : copy_(row.copy) {
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

// The values of all maps in one pixel of an interleaved row.
template <bool FirstCopies, class T, size_t S>
class PixelValues {
 public:
  using Row = typename InterleavedRows<T>::Row;

  PixelValues(const ScaleRow<T, S, Row>& row, int64_t x) : copy_(FirstCopies ? row.copy + x * row.channels : nullptr) {
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

// Applies an operator's `op` to a row: op.pixel<W>(x)(i, v) for every value i of the row, or for eight at once, where x
// is the pixel of value i and v[s] the value of map s. W is Acc, or Lanes<Acc> for eight pixels from x on.
template <bool FirstCopies, class T, size_t S, class Op>
A2S_CLONES static void resize_row(const ScaleRow<T, S, Lerp<acc_t<T>>>& row, int64_t width, const Op op) {
  const RowValues<FirstCopies, T, S> values(row);
  for_each_value<acc_t<T>>(width, [&](int64_t x, auto kind) {
    using V = decltype(kind);
    V v[S];
    values.at(x, v);
    op.template pixel<V>(x)(x, v);
  });
}

template <bool FirstCopies, class T, size_t S, class Op>
A2S_CLONES static void resize_row(const ScaleRow<T, S, typename InterleavedRows<T>::Row> row, int64_t width,
                                  const Op op) {
  const int64_t channels = row.channels;
  for (int64_t x = 0; x < width; ++x) {
    const PixelValues<FirstCopies, T, S> values(row, x);
    const auto pixel = op.template pixel<acc_t<T>>(x);
    for_each_value<acc_t<T>>(channels, [&](int64_t c, auto kind) {
      decltype(kind) v[S];
      values.at(c, v);
      pixel(x * channels + c, v);
    });
  }
}

// The rows of S maps, all resized to one size.
template <class T, int S>
class ScaleRows {
 public:
  using Acc = acc_t<T>;

  ScaleRows(const ScaleSet<T, S>& scales, bool interleaved)
      : first_copies_(scales.resize[0].copies), width_(scales.resize[0].x.out),
        channels_(interleaved ? scales.map[0].c : 1) {
    for (int s = 0; s < S; ++s) {
      if (interleaved) interleaved_.emplace_back(scales.map[s], scales.resize[s]);
      else planar_.emplace_back(scales.map[s], scales.resize[s]);
    }
  }

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

  // Applies `op` to row y of a plane, as resize_row does.
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
    row.channels = channels_;
    for (int s = first_copies_; s < S; ++s) row.rows[s] = maps[s].row(plane, y);
    return row;
  }

  bool first_copies_;
  int64_t width_, channels_;
  std::vector<PlanarRows<T>> planar_;
  std::vector<InterleavedRows<T>> interleaved_;
};

}  // namespace a2s
