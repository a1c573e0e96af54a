// The merges' loops over one row: the ops that merge the resized rows of all scales, and the gradients that a row of
// the merged scores passes back.
#pragma once

#include <vector>

#include "../rows/gather_rows.h"
#include "../rows/scale_rows.h"
#include "softmax_rows.h"

namespace a2s {

// Rows are processed in bands, so that a band's softmax weights stay in L1 and serve all channels. A band has at least
// 16 rows, because adjacent bands recompute the source rows they share.
inline int64_t band_rows(int64_t values_per_row) { return std::max<int64_t>(16, 8192 / values_per_row); }

// Divides the rows [begin, end) of all images into bands, nearly equal, of at most `most` rows. Calls work(n, first,
// last) for the rows [first, last) of image n.
template <class Work>
void for_each_band(int64_t begin, int64_t end, int64_t height, int64_t most, const Work& work) {
  while (begin < end) {
    const int64_t first = begin % height, left = std::min(height - first, end - begin);
    const int64_t bands = (left + most - 1) / most, count = (left + bands - 1) / bands;
    work(begin / height, first, first + count);
    begin += count;
  }
}

// The ops of resize_row (rows/scale_rows.h): v[s] is the value of scale s.

// out = sum over s of weight[s] * v[s], times the recalibration if there is one
template <class T>
struct AttentionOp {
  RowSet<acc_t<T>> weights;
  const T* recalibration;  // may be null
  T* out;

  template <class W, size_t S>
  struct Pixel {
    W w[S];
    const T* recalibration;
    T* out;

    template <class V>
    void operator()(int64_t i, const V (&v)[S]) const {
      V sum = weighted_sum(w, v);
      if (recalibration) sum *= load_values<V>(recalibration + i);
      store_values(out + i, sum);
    }
  };
  template <class W, size_t S>
  Pixel<W, S> pixel(int64_t x) const {
    Pixel<W, S> pixel{{}, recalibration, out};
    weights.at(x, pixel.w);
    return pixel;
  }
};

// out = factor * sum over s of v[s]
template <class T>
struct AverageOp {
  acc_t<T> factor;
  T* out;

  template <class W, size_t>
  AverageOp pixel(int64_t) const {
    return *this;
  }
  template <class V, size_t S>
  void operator()(int64_t i, const V (&v)[S]) const {
    store_values(out + i, average(v, factor));
  }
};

// out = the largest v[s], winner = its s
template <class T>
struct MaxOp {
  T* out;
  uint8_t* winner;

  template <class W, size_t>
  MaxOp pixel(int64_t) const {
    return *this;
  }
  template <class V, size_t S>
  void operator()(int64_t i, const V (&v)[S]) const {
    V s;
    store_values(out + i, largest(v, s));
    store_values(winner + i, s);
  }
};

// A row of the gradient of the weighted sum. If the sum is recalibrated, at() also stores the gradient of the
// recalibration.
template <class T>
struct SumGrad {
  const T *grad, *recalibration;  // recalibration and recalibration_grad may be null
  T* recalibration_grad;
  RowSet<acc_t<T>> weights;

  // For value i, in pixel x. W and V as in weighted_sum.
  template <class W, class V, size_t S>
  V at(int64_t x, int64_t i, const V (&v)[S]) const {
    const V g = load_values<V>(grad + i);
    if (!recalibration) return g;
    W w[S];
    weights.at(x, w);
    store_values(recalibration_grad + i, V(g * weighted_sum(w, v)));
    return g * load_values<V>(recalibration + i);
  }
};

// sums[s][x] += grad * v[s], in an interleaved row summed over the channels of pixel x
template <size_t S, bool FirstCopies, class T>
A2S_CLONES static void add_row_products(const ScaleRow<T, Lerp<acc_t<T>>>& row, int64_t width, const SumGrad<T> grad,
                                        const RowSet<acc_t<T>> sums) {
  const RowValues<S, FirstCopies, T> values(row);
  for_each_value_once<acc_t<T>>(width, [&](int64_t x, auto kind) {
    using V = decltype(kind);
    V v[S];
    values.at(x, v);
    const V g = grad.template at<V>(x, x, v);
    for (size_t s = 0; s < S; ++s) {
      store_values(sums.row(s) + x, V(load_values<V>(sums.row(s) + x) + g * v[s]));
    }
  });
}

template <size_t S, bool FirstCopies, class T>
A2S_CLONES static void add_row_products(const ScaleRow<T, typename InterleavedRows<T>::Row> row, int64_t width,
                                        const SumGrad<T> grad, const RowSet<acc_t<T>> sums) {
  using Acc = acc_t<T>;
  const int64_t channels = row.channels;
  for (int64_t x = 0; x < width; ++x) {
    const PixelValues<S, FirstCopies, T> values(row, x);
    const auto term = [&](int64_t c, auto& terms) {
      values.at(c, terms);
      const auto g = grad.template at<Acc>(x, x * channels + c, terms);
      for (auto& value : terms) value *= g;
    };
    const auto pixel = sums_of<Acc, S>(channels, term);
    for (size_t s = 0; s < S; ++s) sums.row(s)[x] += pixel[s];
  }
}

// Adds grad times the values of scale s in row y of a plane to sums.row[s].
template <class T>
void add_products(ScaleRows<T>& scales, int64_t plane, int64_t y, const SumGrad<T>& grad,
                  const RowSet<acc_t<T>>& sums) {
  dispatch_scales(scales.count(), [&](auto count) {
    scales.visit(plane, y, [&](auto first_copies, const auto& row, int64_t width) {
      add_row_products<decltype(count)::value, decltype(first_copies)::value>(row, width, grad, sums);
    });
  });
}

// Applies `op` to row y of a plane of all scales.
template <class T, class Op>
void merge_row(ScaleRows<T>& scales, int64_t plane, int64_t y, const Op& op) {
  dispatch_scales(scales.count(), [&](auto count) { scales.template row<decltype(count)::value>(plane, y, op); });
}

// The Values of gather_rows (rows/gather_rows.h): the gradient that a row of the merged scores passes to scores[s].
// Under the average it is a ScaledValue.

// Under attention: weights[s] * grad, times the recalibration if there is one.
template <bool Recalibrated, class T>
struct WeightedValue {
  using Acc = acc_t<T>;
  const T *weight, *grad, *recalibration;
  Acc factor(int64_t x) const { return static_cast<Acc>(weight[x]); }
  Acc at(int64_t i) const {
    const auto g = static_cast<Acc>(grad[i]);
    if constexpr (Recalibrated) return g * static_cast<Acc>(recalibration[i]);
    else return g;
  }
};

// Under max merging: grad where s won.
template <class T>
struct WonValue {
  using Acc = acc_t<T>;
  const T* grad;
  const uint8_t* winner;
  uint8_t s;
  Acc factor(int64_t) const { return 1; }
  Acc at(int64_t i) const { return grad_if_won(static_cast<Acc>(grad[i]), winner[i], s); }
};

}  // namespace a2s
