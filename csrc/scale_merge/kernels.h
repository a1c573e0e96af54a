// GPU kernels of the merges and the host code that launches them.
#pragma once

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../interp/kernels.h"
#include "../support/launch.h"
#include "scale_merge.h"

namespace a2s {

// A thread of a merge computes channels group, group + groups, ... of pixel (y, x), so that a pixel's taps and weights
// are worked out once for several channels and neighbouring threads stay neighbours in memory in both layouts.
constexpr int64_t kChannelsPerThread = 8;

template <class T>
struct MergedPixels {
  Map<T> map;
  int64_t groups;

  explicit MergedPixels(const Tensor& merged)
      : map(map_of<T>(merged)), groups((map.c + kChannelsPerThread - 1) / kChannelsPerThread) {}

  int64_t threads() const { return map.n * groups * map.h * map.w; }
  // The channel of the result is the thread's group.
  A2S_HD Element at(int64_t i) const { return element_at(i, groups, map.h, map.w, map.channels_last); }
};

template <class T, int S>
struct AttentionMerge {
  ScaleSet<T, S> scales;
  Map<const T> logits;
  Resize weight_resize;
  MergedPixels<T> merged;
  Map<T> weights;

  A2S_HD void operator()(int64_t i) const {
    const Element e = merged.at(i);
    const ScaleTaps<T, S> taps(scales, e.y, e.x);
    acc_t<T> w[S];
    weights_at(logits, weight_resize, e.n, e.y, e.x, w);
    if (e.c == 0) {
      for (int s = 0; s < S; ++s) weights.at(e.n, s, e.y, e.x) = static_cast<T>(w[s]);
    }
    for (int64_t c = e.c; c < merged.map.c; c += merged.groups) {
      acc_t<T> sum = 0;
      for (int s = 0; s < S; ++s) sum += w[s] * taps.score(scales, s, e.n, c);
      merged.map.at(e.n, c, e.y, e.x) = static_cast<T>(sum);
    }
  }
};

template <class T, int S>
struct AverageMerge {
  ScaleSet<T, S> scales;
  MergedPixels<T> merged;
  float factor;

  A2S_HD void operator()(int64_t i) const {
    const Element e = merged.at(i);
    const ScaleTaps<T, S> taps(scales, e.y, e.x);
    for (int64_t c = e.c; c < merged.map.c; c += merged.groups) {
      acc_t<T> sum = taps.score(scales, 0, e.n, c);
      for (int s = 1; s < S; ++s) sum += taps.score(scales, s, e.n, c);
      merged.map.at(e.n, c, e.y, e.x) = static_cast<T>(sum * factor);
    }
  }
};

template <class T, int S>
struct MaxMerge {
  ScaleSet<T, S> scales;
  MergedPixels<T> merged;
  Map<uint8_t> winner;

  A2S_HD void operator()(int64_t i) const {
    const Element e = merged.at(i);
    const ScaleTaps<T, S> taps(scales, e.y, e.x);
    for (int64_t c = e.c; c < merged.map.c; c += merged.groups) {
      acc_t<T> best = taps.score(scales, 0, e.n, c);
      int best_s = 0;
      for (int s = 1; s < S; ++s) {
        const acc_t<T> value = taps.score(scales, s, e.n, c);
        if (takes_over(s, value, best)) {
          best = value;
          best_s = s;
        }
      }
      merged.map.at(e.n, c, e.y, e.x) = static_cast<T>(best);
      winner.at(e.n, c, e.y, e.x) = static_cast<uint8_t>(best_s);
    }
  }
};

// A thread computes the gradient of the weights of pixel (y, x) of the merged grid and, where that is the logits' grid,
// takes it through the softmax.
template <class T, int S, bool ThroughSoftmax>
struct WeightGrad {
  using Out = std::conditional_t<ThroughSoftmax, T, acc_t<T>>;
  ScaleSet<T, S> scales;
  Map<const T> grad, grad_weights, weights;
  bool has_grad_weights;
  Map<Out> out;

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, 1, grad.h, grad.w, false);
    const ScaleTaps<T, S> taps(scales, e.y, e.x);
    Acc g[S];
    for (int s = 0; s < S; ++s) g[s] = has_grad_weights ? static_cast<Acc>(grad_weights.at(e.n, s, e.y, e.x)) : Acc(0);
    for (int64_t c = 0; c < grad.c; ++c) {
      const Acc gc = static_cast<Acc>(grad.at(e.n, c, e.y, e.x));
      for (int s = 0; s < S; ++s) g[s] += gc * taps.score(scales, s, e.n, c);
    }
    if constexpr (ThroughSoftmax) {
      Acc w[S];
      for (int s = 0; s < S; ++s) w[s] = static_cast<Acc>(weights.at(e.n, s, e.y, e.x));
      softmax_backward(g, w);
    }
    for (int s = 0; s < S; ++s) out.at(e.n, s, e.y, e.x) = static_cast<Out>(g[s]);
  }
};

// A thread owns pixel (y, x) of the logits' grid, where that differs from the merged one: Interp's adjoint of the
// weights' gradient, then through the softmax.
template <class T, int S>
struct LogitGrad {
  Map<const T> logits;
  Map<const acc_t<T>> weight_grad;
  Resize weight_resize;
  Map<T> grad_logits;

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, 1, logits.h, logits.w, false);
    Acc w[S], g[S];
    softmax_at(logits, e.n, e.y, e.x, w);
    for (int s = 0; s < S; ++s) {
      g[s] = gather<Acc>(weight_resize, e.y, e.x,
                         [&](int64_t y, int64_t x) { return weight_grad.at(e.n, s, y, x); });
    }
    softmax_backward(g, w);
    for (int s = 0; s < S; ++s) grad_logits.at(e.n, s, e.y, e.x) = static_cast<T>(g[s]);
  }
};

// What an output passes back to scores[s] under attention: weights[s] * grad.
template <class T>
struct WeightedGrad {
  Map<const T> grad, weights;
  int s;

  A2S_HD acc_t<T> operator()(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return static_cast<acc_t<T>>(weights.at(n, s, y, x)) * static_cast<acc_t<T>>(grad.at(n, c, y, x));
  }
};

// The same under max merging: grad where s won.
template <class T>
struct WonGrad {
  Map<const T> grad;
  Map<const uint8_t> winner;
  int s;

  A2S_HD acc_t<T> operator()(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return winner.at(n, c, y, x) == s ? static_cast<acc_t<T>>(grad.at(n, c, y, x)) : acc_t<T>(0);
  }
};

// A thread computes the weights of pixel (y, x), for any number of scales.
template <class T>
struct ScaleSoftmax {
  Map<const T> logits;
  Map<T> weights;

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, 1, logits.h, logits.w, false);
    const auto logit = [&](int64_t s) { return static_cast<Acc>(logits.at(e.n, s, e.y, e.x)); };
    Acc largest = logit(0), sum = 0;
    for (int64_t s = 1; s < logits.c; ++s) largest = logit(s) > largest ? logit(s) : largest;
    for (int64_t s = 0; s < logits.c; ++s) sum += exp_of(logit(s) - largest);
    for (int64_t s = 0; s < logits.c; ++s) {
      weights.at(e.n, s, e.y, e.x) = static_cast<T>(exp_of(logit(s) - largest) / sum);
    }
  }
};

template <class T>
struct ScaleSoftmaxBackward {
  Map<const T> grad, weights;
  Map<T> grad_logits;

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, 1, grad.h, grad.w, false);
    Acc mean = 0;
    for (int64_t s = 0; s < grad.c; ++s) {
      mean += static_cast<Acc>(grad.at(e.n, s, e.y, e.x)) * static_cast<Acc>(weights.at(e.n, s, e.y, e.x));
    }
    for (int64_t s = 0; s < grad.c; ++s) {
      const Acc w = static_cast<Acc>(weights.at(e.n, s, e.y, e.x));
      grad_logits.at(e.n, s, e.y, e.x) = static_cast<T>(w * (static_cast<Acc>(grad.at(e.n, s, e.y, e.x)) - mean));
    }
  }
};

// Calls body(Type<T>{}, S) for the dtype and number of `scores`.
template <class Body>
void dispatch_merge(const char* op, const std::vector<Tensor>& scores, Body&& body) {
  dispatch(op, scores[0], [&](auto type) {
    dispatch_scales(static_cast<int64_t>(scores.size()), [&](auto count) { body(type, count); });
  });
}

template <class Launch>
Tensor scale_softmax(const Tensor& logits) {
  check_map("scale_softmax", "logits", logits);
  Tensor weights = empty_same(logits);
  dispatch("scale_softmax", logits, [&](auto type) {
    using T = typename decltype(type)::type;
    Launch::run(logits, logits.size(0) * logits.size(2) * logits.size(3),
                ScaleSoftmax<T>{map_of<const T>(logits), map_of<T>(weights)});
  });
  return weights;
}

template <class Launch>
Tensor scale_softmax_backward(const Tensor& grad, const Tensor& weights) {
  check_softmax_backward("scale_softmax_backward", grad, weights);
  Tensor grad_logits = empty_same(weights);
  dispatch("scale_softmax_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    Launch::run(grad, grad.size(0) * grad.size(2) * grad.size(3),
                ScaleSoftmaxBackward<T>{map_of<const T>(grad), map_of<const T>(weights), map_of<T>(grad_logits)});
  });
  return grad_logits;
}

template <class Launch>
std::tuple<Tensor, Tensor> scale_merge(const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                                       int64_t width) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  dispatch_merge("scale_merge", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const AttentionMerge<T, S> kernel{ScaleSet<T, S>(scores, height, width), map_of<const T>(logits),
                                      Resize(logits.size(2), logits.size(3), height, width), MergedPixels<T>(merged),
                                      map_of<T>(weights)};
    Launch::run(logits, kernel.merged.threads(), kernel);
  });
  return {merged, weights};
}

template <class Launch>
std::tuple<std::vector<Tensor>, Tensor> scale_merge_backward(const Tensor& grad,
                                                             const std::optional<Tensor>& grad_weights,
                                                             const std::vector<Tensor>& scores, const Tensor& logits,
                                                             const Tensor& weights) {
  check_merge_backward("scale_merge_backward", grad, grad_weights, scores, logits, weights);
  const int64_t height = grad.size(2), width = grad.size(3);
  const Resize weight_resize(logits.size(2), logits.size(3), height, width);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  Tensor grad_logits = empty_same(logits);
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scales(scores, height, width);
    const Map<const T> grad_map = map_of<const T>(grad), weight_map = map_of<const T>(weights);
    const Map<const T> grad_weight_map = map_of<const T>(grad_weights ? *grad_weights : weights);
    const int64_t pixels = grad_map.n * height * width;
    if (weight_resize.copies) {
      Launch::run(grad, pixels,
                  WeightGrad<T, S, true>{scales, grad_map, grad_weight_map, weight_map, grad_weights.has_value(),
                                         map_of<T>(grad_logits)});
    } else {
      using Acc = acc_t<T>;
      const Tensor weight_grad = empty_weight_grad<Acc>(weights);
      Launch::run(grad, pixels,
                  WeightGrad<T, S, false>{scales, grad_map, grad_weight_map, weight_map, grad_weights.has_value(),
                                          map_of<Acc>(weight_grad)});
      Launch::run(grad, logits.size(0) * logits.size(2) * logits.size(3),
                  LogitGrad<T, S>{map_of<const T>(logits), map_of<const Acc>(weight_grad), weight_resize,
                                  map_of<T>(grad_logits)});
    }
    for (int s = 0; s < S; ++s) {
      launch_gather<Launch, T>(grad_scores[s], height, width, WeightedGrad<T>{grad_map, weight_map, s});
    }
  });
  return {grad_scores, grad_logits};
}

template <class Launch>
Tensor scale_average(const std::vector<Tensor>& scores, int64_t height, int64_t width, double factor) {
  Tensor merged = empty_merged("scale_average", scores, height, width);
  dispatch_merge("scale_average", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const AverageMerge<T, S> kernel{ScaleSet<T, S>(scores, height, width), MergedPixels<T>(merged),
                                    static_cast<float>(factor)};
    Launch::run(merged, kernel.merged.threads(), kernel);
  });
  return merged;
}

template <class Launch>
std::tuple<Tensor, Tensor> scale_max(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  Tensor merged = empty_merged("scale_max", scores, height, width);
  Tensor winner = empty_winner(merged);
  dispatch_merge("scale_max", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const MaxMerge<T, S> kernel{ScaleSet<T, S>(scores, height, width), MergedPixels<T>(merged),
                                map_of<uint8_t>(winner)};
    Launch::run(merged, kernel.merged.threads(), kernel);
  });
  return {merged, winner};
}

template <class Launch>
std::vector<Tensor> scale_max_backward(const Tensor& grad, const Tensor& winner, const std::vector<Tensor>& scores) {
  check_max_backward("scale_max_backward", grad, winner, scores);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  dispatch("scale_max_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    for (size_t s = 0; s < scores.size(); ++s) {
      launch_gather<Launch, T>(
          grad_scores[s], grad.size(2), grad.size(3),
          WonGrad<T>{map_of<const T>(grad), map_of<const uint8_t>(winner), static_cast<int>(s)});
    }
  });
  return grad_scores;
}

}  // namespace a2s
