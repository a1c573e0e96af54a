// Interp's adjoint: the rows of a map's gradient. A pixel gathers from its readers, the results that were interpolated
// from it.
#pragma once

#include <algorithm>
#include <vector>

#include "planar_rows.h"

namespace a2s {

// The readers of one pixel along an axis: outputs [first, end). Their weights begin at index `weights` of AxisReaders.
struct Readers {
  int64_t first, end;
  size_t weights;
};

// The readers of every pixel along an axis. None at the ends of a range has weight 0.
template <class Acc>
struct AxisReaders {
  std::vector<Readers> pixels;
  std::vector<Acc> weights;
  int64_t reach = 0;  // the largest number of readers of a pixel

  explicit AxisReaders(const Axis& axis);
};

// The readers of the pixels of a row, also in groups of eight pixels for planar rows.
template <class Acc>
struct ReaderColumns : AxisReaders<Acc> {
  using Index = typename Columns<Acc>::Index;
  using AxisReaders<Acc>::pixels, AxisReaders<Acc>::weights, AxisReaders<Acc>::reach;

  // The first reader of each pixel, counted from that of the first pixel of its group. Empty if one is 16 or further
  // away, or if Acc has no lanes.
  std::vector<Index> group_first;
  std::vector<Acc> group_weights;  // (reach, in): the weight of reader r of pixel j at [r * in + j], 0 after its last

  explicit ReaderColumns(const Axis& axis);

  // The number of values that gather_columns may read beyond the end of a row.
  int64_t padding() const { return reach + 2 * kLanes; }
};

// sum[x] += weight * value.factor(x) * value.at(x)
template <class Acc, class Value>
A2S_CLONES static void add_row(Acc weight, const Value value, int64_t width, Acc* sum) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) sum[x] += weight * (value.factor(x) * value.at(x));
}

// Planar rows: out[j] = the weighted sum of the readers of pixel j in `row`, which has the padding of `columns`.
template <class Acc>
void gather_columns(const ReaderColumns<Acc>& columns, const Acc* row, Acc* out);

// Interleaved rows: adds row_weight times the weighted sum of each pixel's readers to `out`.
template <class Acc, class Value>
A2S_CLONES static void gather_pixels(const ReaderColumns<Acc>& columns, Acc row_weight, int64_t channels,
                                     const Value value, Acc* out) {
  for (const Readers& pixel : columns.pixels) {
    for (int64_t x = pixel.first; x < pixel.end; ++x) {
      const Acc weight = row_weight * columns.weights[pixel.weights + x - pixel.first] * value.factor(x);
      A2S_INDEPENDENT
      for (int64_t c = 0; c < channels; ++c) out[c] += weight * value.at(x * channels + c);
    }
    out += channels;
  }
}

template <class Acc, class Value>
A2S_CLONES static void copy_row(const Value value, int64_t width, int64_t channels, Acc* out) {
  if (channels == 1) {
    A2S_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) out[x] = value.factor(x) * value.at(x);
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    const Acc factor = value.factor(x);
    A2S_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) out[x * channels + c] = factor * value.at(x * channels + c);
  }
}

// The rows of the gradient of a map that Interp resizes. They are made from `Value`s, the rows of the result's
// gradient: value i of such a row, in pixel x, is value.factor(x) * value.at(i).
template <class Acc>
class GatheredRows {
 public:
  GatheredRows(const Resize& resize, int64_t channels);

  // Sets `out` to row i of the map's gradient. value_of(y) returns row y of the result's gradient as a Value.
  template <class ValueOf>
  void row(int64_t i, const ValueOf& value_of, Acc* out) {
    if (resize_.copies) return copy_row(value_of(i), resize_.x.in, channels_, out);
    const Readers& rows = rows_.pixels[i];
    const auto add_all = [&](Acc* sum, int64_t count, const auto& add) {
      std::fill(sum, sum + count, Acc(0));
      for (int64_t y = rows.first; y < rows.end; ++y) add(rows_.weights[rows.weights + y - rows.first], value_of(y));
    };
    if constexpr (kHasInterleavedLoops<Acc>) {
      if (channels_ > 1) {
        return add_all(out, resize_.x.in * channels_, [&](Acc weight, const auto& value) {
          gather_pixels(columns_, weight, channels_, value, out);
        });
      }
    }
    Acc* sum = column_sum_.data();
    add_all(sum, resize_.x.out, [&](Acc weight, const auto& value) { add_row(weight, value, resize_.x.out, sum); });
    gather_columns(columns_, sum, out);
  }

 private:
  Resize resize_;
  int64_t channels_;
  AxisReaders<Acc> rows_;
  ReaderColumns<Acc> columns_;
  std::vector<Acc> column_sum_;
};

// A row of a gradient, scaled.
template <class T>
struct ScaledValue {
  using Acc = acc_t<T>;
  const T* grad;
  Acc scale;
  Acc factor(int64_t) const { return scale; }
  Acc at(int64_t i) const { return static_cast<Acc>(grad[i]); }
};

// Fills the gradient of a map that was resized. make_value_of() is called once for each part of the rows and returns
// value_of(plane, y), which returns row y of a plane of the result's gradient as a Value.
template <class T, class MakeValueOf>
void gather_rows(const Map<T>& grad_in, const Resize& resize, const MakeValueOf& make_value_of) {
  const Rows<T> rows(grad_in, takes_interleaved(grad_in));
  for_each_part(rows.planes() * grad_in.h, rows.values(), [&](int64_t begin, int64_t end) {
    GatheredRows<acc_t<T>> gathered(resize, rows.channels());
    std::vector<acc_t<T>> buffer(rows.values());
    auto value_of = make_value_of();
    for (int64_t r = begin; r < end; ++r) {
      const int64_t plane = r / grad_in.h, i = r % grad_in.h;
      acc_t<T>* result = rows.in_place(plane, i, buffer.data());
      gathered.row(i, [&](int64_t y) { return value_of(plane, y); }, result);
      rows.store(plane, i, result);
    }
  });
}

}  // namespace a2s
