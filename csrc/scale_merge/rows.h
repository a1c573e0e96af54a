// What the CPU's merges do to a row: the resized rows of all scales, rows of softmax weights, and what becomes of them.
#pragma once

#include <vector>

#include "../interp/gather_rows.h"
#include "../interp/kernels.h"
#include "../interp/rows.h"
#include "scale_merge.h"

namespace a2s {

// S rows side by side, such as the weights of one row of pixels.
template <class Acc, int S>
struct RowSet {
  Acc* row[S];

  RowSet(Acc* first, int64_t width) {
    for (int s = 0; s < S; ++s) row[s] = first + s * width;
  }
  void at(int64_t x, Acc (&v)[S]) const {
    for (int s = 0; s < S; ++s) v[s] = row[s][x];
  }
  void set(int64_t x, const Acc (&v)[S]) const {
    for (int s = 0; s < S; ++s) row[s][x] = v[s];
  }
};

template <class Acc, int S>
A2S_CLONES void softmax_row(const RowSet<Acc, S>& rows, int64_t width) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc v[S];
    rows.at(x, v);
    softmax(v);
    rows.set(x, v);
  }
}

// `grads` become those of the logits whose softmax is `weights`.
template <class Acc, int S>
A2S_CLONES void softmax_backward_row(const RowSet<Acc, S>& grads, const RowSet<Acc, S>& weights, int64_t width) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc g[S], w[S];
    grads.at(x, g);
    weights.at(x, w);
    softmax_backward(g, w);
    grads.set(x, g);
  }
}

// sum over s of weight[s] * v[s], where V is as in load_values
template <class Acc, class V, size_t S>
V weighed(const Acc (&w)[S], const V (&v)[S]) {
  V sum = w[0] * v[0];
  for (size_t s = 1; s < S; ++s) sum += w[s] * v[s];
  return sum;
}

// What planar_row and interleaved_row do with the values v of all scales.

// out = sum over s of weight[s] * v[s]
template <class Acc, int S>
struct Weigh {
  RowSet<Acc, S> weights;
  Acc* out;

  struct Pixel {
    Acc w[S];
    Acc* out;

    template <class V>
    void operator()(int64_t i, const V (&v)[S]) const {
      store_values(out + i, weighed(w, v));
    }
  };
  Pixel pixel(int64_t x) const {
    Pixel pixel{{}, out};
    weights.at(x, pixel.w);
    return pixel;
  }
};

// out = factor * sum over s of weight[s] * v[s]
template <class Acc, int S>
struct WeighRecalibrated {
  Weigh<Acc, S> weigh;
  const Acc* factor;

  struct Pixel {
    typename Weigh<Acc, S>::Pixel weigh;
    const Acc* factor;

    template <class V>
    void operator()(int64_t i, const V (&v)[S]) const {
      store_values(weigh.out + i, V(load_values<V>(factor + i) * weighed(weigh.w, v)));
    }
  };
  Pixel pixel(int64_t x) const { return {weigh.pixel(x), factor}; }
};

// out = factor * sum over s of v[s]
template <class Acc, int S>
struct Average {
  Acc factor;
  Acc* out;

  Average pixel(int64_t) const { return *this; }
  template <class V>
  void operator()(int64_t i, const V (&v)[S]) const {
    V sum = v[0];
    for (int s = 1; s < S; ++s) sum += v[s];
    store_values(out + i, V(sum * factor));
  }
};

// out = the largest v[s], by Caffe's rule for ties; winner = its s
template <class Acc, int S>
struct Largest {
  Acc* out;
  Acc* winner;

  Largest pixel(int64_t) const { return *this; }
  template <class V>
  void operator()(int64_t i, const V (&v)[S]) const {
    V best = v[0], best_s{};
    for (int s = 1; s < S; ++s) {
      const auto takes = takes_over(s, v[s], best);
      best = takes ? v[s] : best;
      best_s = takes ? V{} + Acc(s) : best_s;
    }
    store_values(out + i, best);
    store_values(winner + i, best_s);
  }
};

// A row of the gradient of the weighed sum of the values `v`: at(x, i, v) at place i, of pixel x. V as in load_values.
template <class Acc>
struct PlainGrad {
  const Acc* grad;

  template <class V, size_t S>
  V at(int64_t, int64_t i, const V (&)[S]) const {
    return load_values<V>(grad + i);
  }
};

// The same where the sum is recalibrated, whose gradient it stores.
template <class Acc, int S>
struct RecalibratedGrad {
  const Acc *grad, *factor;
  Acc* factor_grad;
  RowSet<Acc, S> weights;

  template <class V>
  V at(int64_t x, int64_t i, const V (&v)[S]) const {
    Acc w[S];
    weights.at(x, w);
    const V g = load_values<V>(grad + i);
    store_values(factor_grad + i, V(g * weighed(w, v)));
    return g * load_values<V>(factor + i);
  }
};

// sums[s] += grad * v[s], of planar rows
template <class Acc, int S, class Grad>
struct AddProducts {
  Grad grad;
  RowSet<Acc, S> sums;

  AddProducts pixel(int64_t) const { return *this; }
  void operator()(int64_t x, const Acc (&v)[S]) const {
    const Acc g = grad.at(x, x, v);
    for (int s = 0; s < S; ++s) sums.row[s][x] += g * v[s];
  }
};

// The same of interleaved rows, summed over a pixel's channels.
template <bool FirstCopies, class Acc, size_t S, class Grad, class Sums>
A2S_CLONES void add_pixel_products(const std::array<InterleavedRow<Acc>, S> rows, int64_t width, const Grad grad,
                                   const Sums sums) {
  const int64_t lanes = rows[0].lanes;
  for (int64_t x = 0; x < width; ++x) {
    std::array<Quad<Acc>, S> quads;
    for (size_t s = 0; s < S; ++s) quads[s] = rows[s].at(x);
    const auto term = [&](int64_t l, auto& terms) {
      values_at<FirstCopies>(quads, l, terms);
      const auto g = grad.at(x, x * lanes + l, terms);
      for (auto& value : terms) value *= g;
    };
    const auto pixel = sums_of<Acc, S>(lanes, term);
    for (size_t s = 0; s < S; ++s) sums.row[s][x] += pixel[s];
  }
}

// The resized rows of S score maps.
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

  // Does `op` to row y of a plane.
  template <class Op>
  void row(int64_t plane, int64_t y, const Op& op) {
    if (planar_.empty()) {
      const auto rows = rows_of(interleaved_, plane, y);
      first_copies_ ? interleaved_row<true>(rows, width_, op) : interleaved_row<false>(rows, width_, op);
    } else {
      const auto rows = rows_of(planar_, plane, y);
      first_copies_ ? planar_row<true>(rows, width_, op) : planar_row<false>(rows, width_, op);
    }
  }

  // Adds the sum over the row's channels of grad times scale s to sums.row[s].
  template <class Grad>
  void add_products(int64_t plane, int64_t y, const Grad& grad, const RowSet<Acc, S>& sums) {
    if (planar_.empty()) {
      const auto rows = rows_of(interleaved_, plane, y);
      first_copies_ ? add_pixel_products<true>(rows, width_, grad, sums)
                    : add_pixel_products<false>(rows, width_, grad, sums);
    } else {
      const auto rows = rows_of(planar_, plane, y);
      const AddProducts<Acc, S, Grad> op{grad, sums};
      first_copies_ ? planar_row<true>(rows, width_, op) : planar_row<false>(rows, width_, op);
    }
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

// What an output passes back to scores[s] under attention: weight[x] * grad.
template <class Acc>
struct WeightedValue {
  const Acc *weight, *grad;
  Acc factor(int64_t x) const { return weight[x]; }
  Acc at(int64_t i) const { return grad[i]; }
};

// The same under a recalibration.
template <class Acc>
struct RecalibratedValue {
  const Acc *weight, *grad, *recalibration;
  Acc factor(int64_t x) const { return weight[x]; }
  Acc at(int64_t i) const { return grad[i] * recalibration[i]; }
};

// The same under the average: scale * grad.
template <class Acc>
struct ScaledValue {
  const Acc* grad;
  Acc scale;
  Acc factor(int64_t) const { return scale; }
  Acc at(int64_t i) const { return grad[i]; }
};

// The same under max merging: grad where s won.
template <class Acc>
struct WonValue {
  const Acc *grad, *winner;
  Acc s;
  Acc factor(int64_t) const { return 1; }
  Acc at(int64_t i) const { return winner[i] == s ? grad[i] : Acc(0); }
};

}  // namespace a2s
