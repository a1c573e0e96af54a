// Merging score maps of several scales on one grid (Attention to Scale, Eq. 1 and 2), and its adjoint.
//
// scores[s] is (N, C, h_s, w_s), f_s its Interp to the merged grid (h, w); logits is (N, S, lh, lw).
//   attention   weights[n, s, y, x] = softmax over s of logits, interpolated to (h, w) if (lh, lw) differs
//               merged[n, c, y, x]  = sum over s of weights[n, s, y, x] * f_s[n, c, y, x]
//   average     merged = factor * (f_0 + f_1 + ...)
//   max         merged = f_winner; of f_0 and f_1 the second wins a tie, a later map must be strictly greater
// Adjoint of the scores: grad_scores[s] = Interp's adjoint of weights[s] * grad (average: factor * grad; max: grad
// where s won). Adjoint of the weights: grad_w[s] = sum over c of grad * f_s, brought back to the logits' grid by
// Interp's adjoint, then grad_logits[s] = w_s (grad_w[s] - sum over t of w_t grad_w[t]).
#pragma once

#include <optional>
#include <vector>

#include "../interp/interp.h"
#include "../support/check.h"
#include "../support/exp.h"

namespace a2s {

// Softmax over the scales, in place.
template <int S, class Acc>
A2S_HD void softmax(Acc (&w)[S]) {
  Acc largest = w[0];
  for (int s = 1; s < S; ++s) largest = w[s] > largest ? w[s] : largest;
  Acc sum = 0;
  for (int s = 0; s < S; ++s) {
    w[s] = exp_of(w[s] - largest);
    sum += w[s];
  }
  const Acc inverse = 1 / sum;
  for (int s = 0; s < S; ++s) w[s] *= inverse;
}

// Turns the gradient of the weights w into that of the logits, in place.
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

// The weights of one pixel of the merged grid: the softmax of the logits there or, if they are on a grid of their own,
// Interp of the softmax of the four logits around it.
template <class T, int S>
A2S_HD void weights_at(const Map<const T>& logits, const Resize& resize, int64_t n, int64_t y, int64_t x,
                       acc_t<T> (&w)[S]) {
  if (resize.copies) return softmax_at(logits, n, y, x, w);
  using Acc = acc_t<T>;
  const PixelTaps at = taps_at(resize, y, x);
  const Acc ly = at.y.lambda, lx = at.x.lambda;
  for (int s = 0; s < S; ++s) w[s] = 0;
  for (int corner = 0; corner < 4; ++corner) {
    const bool below = corner & 2, right = corner & 1;
    Acc around[S];
    softmax_at(logits, n, below ? at.y.high : at.y.low, right ? at.x.high : at.x.low, around);
    const Acc share = (below ? ly : 1 - ly) * (right ? lx : 1 - lx);
    for (int s = 0; s < S; ++s) w[s] += share * around[s];
  }
}

// Softmax over the channels of one pixel, for any number of channels.
template <class T>
A2S_HD void softmax_pixel(const Map<const T>& logits, const Map<T>& weights, int64_t n, int64_t y, int64_t x) {
  using Acc = acc_t<T>;
  const auto logit = [&](int64_t s) { return static_cast<Acc>(logits.at(n, s, y, x)); };
  Acc largest = logit(0), sum = 0;
  for (int64_t s = 1; s < logits.c; ++s) largest = logit(s) > largest ? logit(s) : largest;
  for (int64_t s = 0; s < logits.c; ++s) sum += exp_of(logit(s) - largest);
  for (int64_t s = 0; s < logits.c; ++s) weights.at(n, s, y, x) = static_cast<T>(exp_of(logit(s) - largest) / sum);
}

// Its gradient.
template <class T>
A2S_HD void softmax_pixel_backward(const Map<const T>& grad, const Map<const T>& weights, const Map<T>& grad_logits,
                                   int64_t n, int64_t y, int64_t x) {
  using Acc = acc_t<T>;
  const auto g = [&](int64_t s) { return static_cast<Acc>(grad.at(n, s, y, x)); };
  const auto w = [&](int64_t s) { return static_cast<Acc>(weights.at(n, s, y, x)); };
  Acc mean = 0;
  for (int64_t s = 0; s < grad.c; ++s) mean += g(s) * w(s);
  for (int64_t s = 0; s < grad.c; ++s) grad_logits.at(n, s, y, x) = static_cast<T>(w(s) * (g(s) - mean));
}

// The merges of one element: v[s] is its value in f_s. V is a number, or on the CPU a vector of neighbouring elements.

// sum over s of w[s] * v[s]
template <class W, class V, size_t S>
A2S_HD V weighted_sum(const W (&w)[S], const V (&v)[S]) {
  V sum = w[0] * v[0];
  for (size_t s = 1; s < S; ++s) sum += w[s] * v[s];
  return sum;
}

// factor * sum over s of v[s]
template <class V, class Acc, size_t S>
A2S_HD V average(const V (&v)[S], Acc factor) {
  V sum = v[0];
  for (size_t s = 1; s < S; ++s) sum += v[s];
  return sum * factor;
}

// Caffe's Eltwise MAX: the largest v[s], and its s in `winner`.
template <class V, size_t S>
A2S_HD V largest(const V (&v)[S], V& winner) {
  V best = v[0], number{};
  winner = V{};
  for (size_t s = 1; s < S; ++s) {
    number += 1;
    const auto wins = s == 1 ? !(best > v[s]) : v[s] > best;
    best = wins ? v[s] : best;
    winner = wins ? number : winner;
  }
  return best;
}

// The gradient that passes from an element's merged score to map s under max merging.
template <class Acc>
A2S_HD Acc grad_if_won(Acc grad, int winner, int s) {
  return winner == s ? grad : Acc(0);
}

// Checks of the operators' arguments.

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

inline void check_recalibration(const char* op, const std::optional<Tensor>& recalibration, const Tensor& merged) {
  if (!recalibration) return;
  check_shape(op, "recalibration", *recalibration, merged.size(0), merged.size(1), merged.size(2), merged.size(3));
  check_matches(op, "recalibration", *recalibration, merged);
}

inline void check_average_backward(const char* op, const Tensor& grad, const std::vector<Tensor>& scores) {
  check_map(op, "grad", grad);
  check_merge(op, scores, grad.size(2), grad.size(3));
  check_matches(op, "grad", grad, scores[0]);
  check_shape(op, "grad", grad, scores[0].size(0), scores[0].size(1), grad.size(2), grad.size(3));
}

inline void check_max_backward(const char* op, const Tensor& grad, const Tensor& winner,
                               const std::vector<Tensor>& scores) {
  check_average_backward(op, grad, scores);
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

// Calls body(Type<T>{}, S) for the dtype and number of `scores`.
template <class Body>
void dispatch_merge(const char* op, const std::vector<Tensor>& scores, Body&& body) {
  dispatch(op, scores[0], [&](auto type) {
    dispatch_scales(static_cast<int64_t>(scores.size()), [&](auto count) { body(type, count); });
  });
}

// The uninitialised results of a merge. They check its arguments.

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

// An uninitialised contiguous map of dtype Acc for intermediate results, in size like `like` but for its channels.
template <class Acc>
Tensor empty_planes(const Tensor& like, int64_t channels) {
  const std::array<int64_t, 4> size{like.size(0), channels, like.size(2), like.size(3)};
  return torch::stable::empty({size.data(), size.size()},
                              std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float, std::nullopt,
                              like.device());
}

inline std::vector<Tensor> empty_same_all(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(empty_same(tensor));
  return result;
}

}  // namespace a2s
