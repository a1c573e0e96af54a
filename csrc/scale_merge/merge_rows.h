// The merges' loops over one row: rows of softmax weights, the ops that merge the resized rows of all scales, and the
// gradients that a row of the merged scores passes back.
#pragma once

#include <vector>

#include "../rows/gather_rows.h"
#include "../rows/scale_rows.h"
#include "scale_merge.h"

namespace a2s {

// Calls body(Type<T>{}, S) for the dtype and number of `scores`.
template <class Body>
void dispatch_merge_cpu(const char* op, const std::vector<Tensor>& scores, Body&& body) {
  dispatch_cpu(op, scores[0], [&](auto type) {
    dispatch_scales(static_cast<int64_t>(scores.size()), [&](auto count) { body(type, count); });
  });
}

// S rows of numbers, for example the weights of all scales for one row of pixels.
template <class Acc, int S>
struct RowSet {
  Acc* row[S];

  RowSet(Acc* first, int64_t width) {
    for (int s = 0; s < S; ++s) row[s] = first + s * width;
  }
  // V as in load_values.
  template <class V>
  void at(int64_t x, V (&v)[S]) const {
    for (int s = 0; s < S; ++s) v[s] = load_values<V>(row[s] + x);
  }
  void set(int64_t x, const Acc (&v)[S]) const {
    for (int s = 0; s < S; ++s) row[s][x] = v[s];
  }
};

// From pixels of S adjacent values to S rows, and back.
template <class T, class Acc, int S>
A2S_CLONES static void split_pixels(const T* from, int64_t width, const RowSet<Acc, S> to) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    for (int s = 0; s < S; ++s) to.row[s][x] = static_cast<Acc>(from[x * S + s]);
  }
}

template <class T, class Acc, int S>
A2S_CLONES static void join_pixels(const RowSet<Acc, S> from, int64_t width, T* to) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    for (int s = 0; s < S; ++s) to[x * S + s] = static_cast<T>(from.row[s][x]);
  }
}

// A map with one channel per scale, such as logits or weights. Its rows are read and written as RowSets.
template <class T, int S>
class ScaleChannels {
 public:
  explicit ScaleChannels(const Map<T>& map)
      : map_(map), planes_(map, false), joined_(S > 1 && map.stride_c == 1 && map.stride_w == S) {}

  template <class Acc>
  void load(int64_t n, int64_t y, const RowSet<Acc, S>& to) const {
    if (joined_) return split_pixels(&map_.at(n, 0, y, 0), map_.w, to);
    for (int s = 0; s < S; ++s) planes_.load(n * S + s, y, to.row[s]);
  }

  template <class Acc>
  void store(int64_t n, int64_t y, const RowSet<Acc, S>& from) const {
    if (joined_) return join_pixels(from, map_.w, &map_.at(n, 0, y, 0));
    for (int s = 0; s < S; ++s) planes_.store(n * S + s, y, from.row[s]);
  }

 private:
  Map<T> map_;
  Rows<T> planes_;
  bool joined_;  // all values of a row are adjacent, pixel by pixel
};

// Softmax over the scales, in place.
template <class Acc, int S>
A2S_CLONES static void softmax_row(const RowSet<Acc, S>& rows, int64_t width) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc v[S];
    rows.at(x, v);
    softmax(v);
    rows.set(x, v);
  }
}

// Turns gradients of the weights into gradients of the logits, in place.
template <class Acc, int S>
A2S_CLONES static void softmax_backward_row(const RowSet<Acc, S>& grads, const RowSet<Acc, S>& weights, int64_t width) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc g[S], w[S];
    grads.at(x, g);
    weights.at(x, w);
    softmax_backward(g, w);
    grads.set(x, g);
  }
}

// Fills `weights` with the softmax of the logits, on the same grid.
template <class T, int S, class Out>
void softmax_rows(const Map<const T>& logits, const Map<Out>& weights) {
  using Acc = acc_t<T>;
  const ScaleChannels<const T, S> in(logits);
  const ScaleChannels<Out, S> out(weights);
  for_each_part(logits.n * logits.h, S * logits.w, [&](int64_t begin, int64_t end) {
    std::vector<Acc> buffer(S * logits.w);
    const RowSet<Acc, S> row(buffer.data(), logits.w);
    for (int64_t r = begin; r < end; ++r) {
      in.load(r / logits.h, r % logits.h, row);
      softmax_row(row, logits.w);
      out.store(r / logits.h, r % logits.h, row);
    }
  });
}

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
template <bool Recalibrated, class T, int S>
struct AttentionOp {
  RowSet<acc_t<T>, S> weights;
  const T* recalibration;
  T* out;

  template <class W>
  struct Pixel {
    W w[S];
    const T* recalibration;
    T* out;

    template <class V>
    void operator()(int64_t i, const V (&v)[S]) const {
      V sum = weighted_sum(w, v);
      if constexpr (Recalibrated) sum *= load_values<V>(recalibration + i);
      store_values(out + i, sum);
    }
  };
  template <class W>
  Pixel<W> pixel(int64_t x) const {
    Pixel<W> pixel{{}, recalibration, out};
    weights.at(x, pixel.w);
    return pixel;
  }
};

// out = factor * sum over s of v[s]
template <class T, int S>
struct AverageOp {
  acc_t<T> factor;
  T* out;

  template <class W>
  AverageOp pixel(int64_t) const {
    return *this;
  }
  template <class V>
  void operator()(int64_t i, const V (&v)[S]) const {
    store_values(out + i, average(v, factor));
  }
};

// out = the largest v[s], winner = its s
template <class T, int S>
struct MaxOp {
  T* out;
  uint8_t* winner;

  template <class W>
  MaxOp pixel(int64_t) const {
    return *this;
  }
  template <class V>
  void operator()(int64_t i, const V (&v)[S]) const {
    V s;
    store_values(out + i, largest(v, s));
    store_values(winner + i, s);
  }
};

// Rows of the gradient of the weighted sum: at<W>(x, i, v) for value i, in pixel x. W and V as in weighted_sum.

template <class T>
struct SumGrad {
  const T* grad;

  template <class W, class V, int S>
  V at(int64_t, int64_t i, const V (&)[S]) const {
    return load_values<V>(grad + i);
  }
};

// If the sum is recalibrated. Also stores the gradient of the recalibration.
template <class T, int S>
struct RecalibratedGrad {
  const T *grad, *recalibration;
  T* recalibration_grad;
  RowSet<acc_t<T>, S> weights;

  template <class W, class V>
  V at(int64_t x, int64_t i, const V (&v)[S]) const {
    const V g = load_values<V>(grad + i);
    W w[S];
    weights.at(x, w);
    store_values(recalibration_grad + i, V(g * weighted_sum(w, v)));
    return g * load_values<V>(recalibration + i);
  }
};

// sums[s][x] += grad * v[s], in an interleaved row summed over the channels of pixel x
template <bool FirstCopies, class T, size_t S, class Grad, class Sums>
A2S_CLONES static void add_row_products(const ScaleRow<T, S, Lerp<acc_t<T>>>& row, int64_t width, const Grad grad,
                                        const Sums sums) {
  using Acc = acc_t<T>;
  const RowValues<FirstCopies, T, S> values(row);
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc v[S];
    values.at(x, v);
    const Acc g = grad.template at<Acc>(x, x, v);
    for (size_t s = 0; s < S; ++s) sums.row[s][x] += g * v[s];
  }
}

template <bool FirstCopies, class T, size_t S, class Grad, class Sums>
A2S_CLONES static void add_row_products(const ScaleRow<T, S, typename InterleavedRows<T>::Row> row, int64_t width,
                                        const Grad grad, const Sums sums) {
  using Acc = acc_t<T>;
  const int64_t channels = row.channels;
  for (int64_t x = 0; x < width; ++x) {
    const PixelValues<FirstCopies, T, S> values(row, x);
    const auto term = [&](int64_t c, auto& terms) {
      values.at(c, terms);
      const auto g = grad.template at<Acc>(x, x * channels + c, terms);
      for (auto& value : terms) value *= g;
    };
    const auto pixel = sums_of<Acc, S>(channels, term);
    for (size_t s = 0; s < S; ++s) sums.row[s][x] += pixel[s];
  }
}

// Adds grad times the values of scale s in row y of a plane to sums.row[s].
template <class T, int S, class Grad>
void add_products(ScaleRows<T, S>& scales, int64_t plane, int64_t y, const Grad& grad,
                  const RowSet<acc_t<T>, S>& sums) {
  scales.visit(plane, y, [&](auto first_copies, const auto& row, int64_t width) {
    add_row_products<decltype(first_copies)::value>(row, width, grad, sums);
  });
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
