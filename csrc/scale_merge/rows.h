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

// to[i] = a[i] * b[i]
template <class Acc>
A2S_CLONES void multiply_rows(const Acc* a, const Acc* b, int64_t count, Acc* to) {
  A2S_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] * b[i];
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

    void operator()(int64_t i, const Acc (&v)[S]) const {
      Acc sum = w[0] * v[0];
      for (int s = 1; s < S; ++s) sum += w[s] * v[s];
      out[i] = sum;
    }
  };
  Pixel pixel(int64_t x) const {
    Pixel pixel{{}, out};
    weights.at(x, pixel.w);
    return pixel;
  }
};

// out = factor * sum over s of v[s]
template <class Acc, int S>
struct Average {
  Acc factor;
  Acc* out;

  Average pixel(int64_t) const { return *this; }
  void operator()(int64_t i, const Acc (&v)[S]) const {
    Acc sum = v[0];
    for (int s = 1; s < S; ++s) sum += v[s];
    out[i] = sum * factor;
  }
};

// out = the largest v[s], by Caffe's rule for ties; winner = its s
template <class Acc, int S>
struct Largest {
  Acc* out;
  Acc* winner;

  Largest pixel(int64_t) const { return *this; }
  void operator()(int64_t i, const Acc (&v)[S]) const {
    Acc best = v[0], best_s = 0;
    for (int s = 1; s < S; ++s) {
      const bool takes = takes_over(s, v[s], best);
      best = takes ? v[s] : best;
      best_s = takes ? Acc(s) : best_s;
    }
    out[i] = best;
    winner[i] = best_s;
  }
};

// sums[s] += grad * v[s], of planar rows
template <class Acc, int S>
struct AddProducts {
  const Acc* grad;
  RowSet<Acc, S> sums;

  AddProducts pixel(int64_t) const { return *this; }
  void operator()(int64_t x, const Acc (&v)[S]) const {
    for (int s = 0; s < S; ++s) sums.row[s][x] += grad[x] * v[s];
  }
};

// The same for one scale of interleaved rows: sums += the sum over a pixel's channels of grad times the scale's value.
template <class Acc>
A2S_CLONES void add_pixel_products(const InterleavedRow<Acc>& row, const Acc* grad, int64_t width, Acc* sums) {
  const int64_t lanes = row.lanes;
  for (int64_t x = 0; x < width; ++x) {
    const Quad<Acc> quad = row.at(x);
    const Acc* pixel = grad + x * lanes;
    if (row.zeros) {
      sums[x] += sum_of<Acc>(
          lanes, [=](int64_t l) { return load_lanes(pixel + l) * load_lanes(quad.a00 + l); },
          [=](int64_t l) { return pixel[l] * quad.a00[l]; });
    } else {
      sums[x] += sum_of<Acc>(
          lanes, [=](int64_t l) { return load_lanes(pixel + l) * quad.lanes_at(l); },
          [=](int64_t l) { return pixel[l] * quad.at(l); });
    }
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
      std::array<InterleavedRow<Acc>, S> rows;
      for (int s = 0; s < S; ++s) rows[s] = interleaved_[s].row(plane, y);
      first_copies_ ? interleaved_row<true>(rows, width_, op) : interleaved_row<false>(rows, width_, op);
    } else {
      std::array<PlanarRow<Acc>, S> rows;
      for (int s = 0; s < S; ++s) rows[s] = planar_[s].row(plane, y);
      first_copies_ ? planar_row<true>(rows, width_, op) : planar_row<false>(rows, width_, op);
    }
  }

  // Adds the sum over the row's channels of grad times scale s to sums.row[s].
  void add_products(int64_t plane, int64_t y, const Acc* grad, const RowSet<Acc, S>& sums) {
    if (!planar_.empty()) return row(plane, y, AddProducts<Acc, S>{grad, sums});
    for (int s = 0; s < S; ++s) add_pixel_products(interleaved_[s].row(plane, y), grad, width_, sums.row[s]);
  }

 private:
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
