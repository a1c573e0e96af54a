// CPU loops of Interp's adjoint: every input row visits the result rows that read it.
#pragma once

#include <algorithm>
#include <vector>

#include "planar_rows.h"

namespace a2s {

// Outputs [first, end) that read a pixel with a weight other than 0, and where their weights begin.
struct Readers {
  int64_t first, end;
  size_t weights;
};

// What reads each pixel along an axis.
template <class Acc>
struct AxisReaders {
  std::vector<Readers> pixels;
  std::vector<Acc> weights;
  int64_t reach = 0;  // the most readers that a pixel has

  explicit AxisReaders(const Axis& axis) {
    for (int64_t i = 0; i < axis.in; ++i) {
      int64_t first, last;
      axis.readers(i, first, last);
      while (first <= last && axis.template weight<Acc>(first, i) == 0) ++first;
      while (first <= last && axis.template weight<Acc>(last, i) == 0) --last;
      pixels.push_back({first, last + 1, weights.size()});
      reach = std::max(reach, last + 1 - first);
      for (int64_t o = first; o <= last; ++o) weights.push_back(axis.template weight<Acc>(o, i));
    }
  }
};

// sum[x] += weight * value.factor(x) * value.at(x)
template <class Acc, class Value>
A2S_CLONES void add_row(Acc weight, const Value value, int64_t width, Acc* sum) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) sum[x] += weight * (value.factor(x) * value.at(x));
}

// What reads each pixel of a row.
template <class Acc>
struct ReaderColumns : AxisReaders<Acc> {
  using Position = typename Columns<Acc>::Position;
  using AxisReaders<Acc>::pixels, AxisReaders<Acc>::weights, AxisReaders<Acc>::reach;

  // Where eight neighbours' first readers are less than 16 apart: how far from the first of the eight, and the weight of
  // reader r of pixel j at [r * pixels + j], 0 beyond its last.
  std::vector<Position> local;
  std::vector<Acc> weight_rows;

  explicit ReaderColumns(const Axis& axis) : AxisReaders<Acc>(axis) {
    for (int64_t j = 0; j < axis.in; ++j) {
      const int64_t distance = pixels[j].first - pixels[j / kLanes * kLanes].first;
      if (distance < 0 || distance >= 2 * kLanes) {
        local.clear();
        return;
      }
      local.push_back(static_cast<Position>(distance));
    }
    weight_rows.resize(reach * axis.in);
    for (int64_t j = 0; j < axis.in; ++j) {
      for (int64_t x = pixels[j].first; x < pixels[j].end; ++x) {
        weight_rows[(x - pixels[j].first) * axis.in + j] = weights[pixels[j].weights + x - pixels[j].first];
      }
    }
  }

  // Values that can be read beyond a row's end.
  int64_t padding() const { return reach + 2 * kLanes; }
};

// out[j] = the weighted sum of what reads pixel j; `row` has the padding of `columns`
template <class Acc>
A2S_CLONES void gather_columns(const ReaderColumns<Acc>& columns, const Acc* row, Acc* out) {
  const auto width = static_cast<int64_t>(columns.pixels.size());
  int64_t j = 0;
#if defined(__GNUC__) && !defined(__clang__)
  if (!columns.local.empty()) {
    for (; j + kLanes <= width; j += kLanes) {
      const auto local = load_lanes(&columns.local[j]);
      const Acc* first = row + columns.pixels[j].first;
      const Acc* weight = &columns.weight_rows[j];
      Lanes<Acc> sum{};
      for (int64_t r = 0; r < columns.reach; ++r) {
        sum += load_lanes(weight + r * width) *
               __builtin_shuffle(load_lanes(first + r), load_lanes(first + r + kLanes), local);
      }
      store_values(out + j, sum);
    }
  }
#endif
  for (; j < width; ++j) {
    const Readers& pixel = columns.pixels[j];
    const Acc *weight = &columns.weights[pixel.weights], *read = row + pixel.first;
    const auto term = [=](int64_t i, auto& terms) {
      using V = std::decay_t<decltype(terms[0])>;
      terms[0] = load_values<V>(weight + i) * load_values<V>(read + i);
    };
    out[j] = sums_of<Acc, 1>(pixel.end - pixel.first, term)[0];
  }
}

// The same for pixels of several values: out += weight times the gathered row.
template <class Acc, class Value>
A2S_CLONES void gather_pixels(const ReaderColumns<Acc>& columns, Acc row_weight, int64_t lanes, const Value value,
                              Acc* out) {
  for (const Readers& pixel : columns.pixels) {
    for (int64_t x = pixel.first; x < pixel.end; ++x) {
      const Acc weight = row_weight * columns.weights[pixel.weights + x - pixel.first] * value.factor(x);
      A2S_INDEPENDENT
      for (int64_t l = 0; l < lanes; ++l) out[l] += weight * value.at(x * lanes + l);
    }
    out += lanes;
  }
}

template <class Acc, class Value>
A2S_CLONES void copy_row(const Value value, int64_t width, int64_t lanes, Acc* out) {
  if (lanes == 1) {
    A2S_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) out[x] = value.factor(x) * value.at(x);
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    const Acc factor = value.factor(x);
    A2S_INDEPENDENT
    for (int64_t l = 0; l < lanes; ++l) out[x * lanes + l] = factor * value.at(x * lanes + l);
  }
}

// Rows of the gradient of a map under Interp, from rows of the result's: value i of such a row, of pixel x, is
// value.factor(x) * value.at(i).
template <class Acc>
class GatheredRows {
 public:
  GatheredRows(const Resize& resize, int64_t lanes)
      : resize_(resize), lanes_(lanes), rows_(resize.y), columns_(resize.x),
        column_sum_(lanes == 1 ? resize.x.out + columns_.padding() : 0) {}

  // Fills row i of the gradient. value_of(y) gives row y of the result's.
  template <class ValueOf>
  void row(int64_t i, const ValueOf& value_of, Acc* out) {
    if (resize_.copies) return copy_row(value_of(i), resize_.x.in, lanes_, out);
    const Readers& rows = rows_.pixels[i];
    Acc* sum = lanes_ == 1 ? column_sum_.data() : out;
    std::fill(sum, sum + (lanes_ == 1 ? resize_.x.out : resize_.x.in * lanes_), Acc(0));
    for (int64_t y = rows.first; y < rows.end; ++y) {
      const auto value = value_of(y);
      const Acc weight = rows_.weights[rows.weights + y - rows.first];
      if (lanes_ == 1) add_row(weight, value, resize_.x.out, sum);
      else gather_pixels(columns_, weight, lanes_, value, sum);
    }
    if (lanes_ == 1) gather_columns(columns_, sum, out);
  }

 private:
  Resize resize_;
  int64_t lanes_;
  AxisReaders<Acc> rows_;
  ReaderColumns<Acc> columns_;
  std::vector<Acc> column_sum_;
};

// A row of a gradient as it is.
template <class T>
struct PlainValue {
  using Acc = acc_t<T>;
  const T* row;
  Acc factor(int64_t) const { return 1; }
  Acc at(int64_t i) const { return static_cast<Acc>(row[i]); }
};

// Fills the gradient of a map under `resize`. make_value_of() gives, for a part of the rows, value_of(plane, y).
template <class T, class MakeValueOf>
void gather_rows(const Map<T>& grad_in, const Resize& resize, const MakeValueOf& make_value_of) {
  const Rows<T> rows(grad_in, grad_in.channels_last);
  for_each_part(rows.planes() * grad_in.h, rows.values(), [&](int64_t begin, int64_t end) {
    GatheredRows<acc_t<T>> gathered(resize, rows.lanes());
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
