// Merging score maps of several scales on one grid (Attention to Scale, Eq. 1 and 2), and its adjoint.
//
// scores[s] is (N, C, h_s, w_s), f_s its Interp to the merged grid (h, w); logits is (N, S, lh, lw).
//   attention   weights[n, s, y, x] = softmax over s of logits, interpolated to (h, w) if (lh, lw) differs
//               merged[n, c, y, x]  = sum over s of weights[n, s, y, x] * f_s[n, c, y, x]
//   average     merged = factor * (f_0 + f_1 + ...)
//   max         merged = f_winner; of f_0 and f_1 the second wins a tie, a later map must be strictly greater
// Adjoint of the scores: grad_scores[s] = Interp's adjoint of weights[s] * grad (average: factor * grad; max: grad where
// s won). Adjoint of the weights: grad_w[s] = sum over c of grad * f_s, brought back to the logits' grid by Interp's
// adjoint, then grad_logits[s] = w_s (grad_w[s] - sum over t of w_t grad_w[t]).
#pragma once

#include <optional>
#include <vector>

#include "../interp/interp.h"
#include "../support/check.h"

namespace a2s {

// S maps and how each is resized to the merged grid.
template <class T, int S>
struct ScaleSet {
  Map<const T> map[S];
  Resize resize[S];

  ScaleSet(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
    for (int s = 0; s < S; ++s) {
      map[s] = map_of<const T>(scores[s]);
      resize[s] = Resize(map[s].h, map[s].w, height, width);
    }
  }
};

// The taps of all scales at one pixel of the merged grid.
template <class T, int S>
struct ScaleTaps {
  PixelTaps at[S];

  A2S_HD ScaleTaps(const ScaleSet<T, S>& scales, int64_t y, int64_t x) {
    for (int s = 0; s < S; ++s) at[s] = taps_at(scales.resize[s], y, x);
  }
  A2S_HD acc_t<T> score(const ScaleSet<T, S>& scales, int s, int64_t n, int64_t c) const {
    return sample(scales.map[s], scales.resize[s].copies, at[s], n, c);
  }
};

A2S_HD float exp_of(float x) { return expf(x); }
A2S_HD double exp_of(double x) { return exp(x); }

template <int S, class Acc>
A2S_HD void softmax(Acc (&w)[S]) {
  Acc largest = w[0];
  for (int s = 1; s < S; ++s) largest = w[s] > largest ? w[s] : largest;
  Acc sum = 0;
  for (int s = 0; s < S; ++s) {
    w[s] = exp_of(w[s] - largest);
    sum += w[s];
  }
  for (int s = 0; s < S; ++s) w[s] /= sum;
}

// Gradient of the logits from that of the weights, in place.
template <int S, class Acc>
A2S_HD void softmax_backward(Acc (&grad)[S], const Acc (&w)[S]) {
  Acc mean = 0;
  for (int s = 0; s < S; ++s) mean += grad[s] * w[s];
  for (int s = 0; s < S; ++s) grad[s] = w[s] * (grad[s] - mean);
}

template <class T, int S>
A2S_HD void softmax_at(const Map<const T>& logits, int64_t n, int64_t y, int64_t x, acc_t<T> (&w)[S]) {
  for (int s = 0; s < S; ++s) w[s] = static_cast<acc_t<T>>(logits.at(n, s, y, x));
  softmax(w);
}

// Weights of one pixel of the merged grid: the softmax there, or Interp of the softmax around it.
template <class T, int S>
A2S_HD void weights_at(const Map<const T>& logits, const Resize& resize, int64_t n, int64_t y, int64_t x,
                       acc_t<T> (&w)[S]) {
  if (resize.copies) return softmax_at(logits, n, y, x, w);
  using Acc = acc_t<T>;
  const PixelTaps at = taps_at(resize, y, x);
  const Acc ly = at.y.lambda, lx = at.x.lambda;
  Acc a[S], b[S];
  softmax_at(logits, n, at.y.low, at.x.low, w);
  softmax_at(logits, n, at.y.low, at.x.high, b);
  for (int s = 0; s < S; ++s) w[s] = (1 - ly) * ((1 - lx) * w[s] + lx * b[s]);
  softmax_at(logits, n, at.y.high, at.x.low, a);
  softmax_at(logits, n, at.y.high, at.x.high, b);
  for (int s = 0; s < S; ++s) w[s] += ly * ((1 - lx) * a[s] + lx * b[s]);
}

// Caffe's Eltwise MAX: whether map s, with `value`, takes the place of the running maximum of the maps before it.
template <class Acc>
A2S_HD bool takes_over(int s, Acc value, Acc running) {
  return s == 1 ? !(running > value) : value > running;
}

// The scores of one merge and the size of its result.
inline void check_merge(const char* op, const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  check_scores(op, scores);
  check_size(op, height, width);
}

inline void check_logits(const char* op, const std::vector<Tensor>& scores, const Tensor& logits) {
  check_map(op, "logits", logits);
  check_matches(op, "logits", logits, scores[0]);
  check(logits.size(1) == static_cast<int64_t>(scores.size()), "a2s::", op, ": logits has ", logits.size(1),
        " channels for ", scores.size(), " score maps.");
}

inline void check_merge_backward(const char* op, const Tensor& grad, const std::optional<Tensor>& grad_weights,
                                 const std::vector<Tensor>& scores, const Tensor& logits, const Tensor& weights) {
  check_map(op, "grad", grad);
  check_merge(op, scores, grad.size(2), grad.size(3));
  check_logits(op, scores, logits);
  check_shape(op, "grad", grad, scores[0].size(0), scores[0].size(1), grad.size(2), grad.size(3));
  check_matches(op, "grad", grad, scores[0]);
  check_shape(op, "weights", weights, logits.size(0), logits.size(1), grad.size(2), grad.size(3));
  check_matches(op, "weights", weights, scores[0]);
  if (grad_weights) {
    check_shape(op, "grad_weights", *grad_weights, logits.size(0), logits.size(1), grad.size(2), grad.size(3));
    check_matches(op, "grad_weights", *grad_weights, scores[0]);
  }
}

inline void check_max_backward(const char* op, const Tensor& grad, const Tensor& winner,
                               const std::vector<Tensor>& scores) {
  check_map(op, "grad", grad);
  check_merge(op, scores, grad.size(2), grad.size(3));
  check_matches(op, "grad", grad, scores[0]);
  check_shape(op, "grad", grad, scores[0].size(0), scores[0].size(1), grad.size(2), grad.size(3));
  check_shape(op, "winner", winner, grad.size(0), grad.size(1), grad.size(2), grad.size(3));
  check(winner.scalar_type() == ScalarType::Byte, "a2s::", op, ": winner must be uint8.");
  check(winner.is_cuda() == grad.is_cuda() && winner.get_device_index() == grad.get_device_index(), "a2s::", op,
        ": winner must be on the device of grad.");
}

inline void check_softmax_backward(const char* op, const Tensor& grad, const Tensor& weights) {
  check_map(op, "weights", weights);
  check_shape(op, "grad", grad, weights.size(0), weights.size(1), weights.size(2), weights.size(3));
  check_matches(op, "grad", grad, weights);
}

// The uninitialised results of a merge, once its arguments are checked.
inline Tensor empty_merged(const char* op, const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  check_merge(op, scores, height, width);
  return empty_map(scores[0], scores[0].size(0), scores[0].size(1), height, width);
}

inline Tensor empty_winner(const Tensor& merged) {
  return empty_map(merged, merged.size(0), merged.size(1), merged.size(2), merged.size(3), ScalarType::Byte);
}

inline Tensor empty_weights(const char* op, const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                            int64_t width) {
  check_logits(op, scores, logits);
  return empty_map(logits, logits.size(0), logits.size(1), height, width);
}

// The gradient of `weights` on the merged grid, in the accumulation type, on its way to the logits' grid.
template <class Acc>
Tensor empty_weight_grad(const Tensor& weights) {
  return empty_map(weights, weights.size(0), weights.size(1), weights.size(2), weights.size(3),
                   std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float);
}

inline std::vector<Tensor> empty_same_all(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(empty_same(tensor));
  return result;
}

}  // namespace a2s
