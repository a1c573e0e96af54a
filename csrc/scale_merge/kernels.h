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

template <class T>
Map<const T> optional_map(const std::optional<Tensor>& tensor) {
  return tensor ? map_of<const T>(*tensor) : Map<const T>{};
}

// What PlanarResize and InterleavedResize do with the values of all scales.

// merged = recalibration * sum over s of weight[s] * v[s], the weights being made and stored on the way.
template <class T, int S>
struct AttentionMerge {
  Map<const T> logits;
  Resize weight_resize;
  Map<const T> recalibration;  // data is null if there is none
  Map<T> merged, weights;

  struct Pixel {
    acc_t<T> w[S];
  };
  A2S_HD Pixel pixel(const Element& e, bool is_first) const {
    Pixel pixel;
    weights_at(logits, weight_resize, e.n, e.y, e.x, pixel.w);
    if (is_first) {
      for (int s = 0; s < S; ++s) weights.at(e.n, s, e.y, e.x) = static_cast<T>(pixel.w[s]);
    }
    return pixel;
  }
  A2S_HD void write(const Pixel& pixel, const Element& e, const acc_t<T> (&v)[S]) const {
    acc_t<T> sum = weighted_sum(pixel.w, v);
    if (recalibration.data) sum *= static_cast<acc_t<T>>(recalibration.at(e.n, e.c, e.y, e.x));
    merged.at(e.n, e.c, e.y, e.x) = static_cast<T>(sum);
  }
};

template <class T, int S>
struct AverageMerge {
  Map<T> merged;
  float factor;

  struct Pixel {};
  A2S_HD Pixel pixel(const Element&, bool) const { return {}; }
  A2S_HD void write(const Pixel&, const Element& e, const acc_t<T> (&v)[S]) const {
    merged.at(e.n, e.c, e.y, e.x) = static_cast<T>(average(v, factor));
  }
};

template <class T, int S>
struct MaxMerge {
  Map<T> merged;
  Map<uint8_t> winner;

  struct Pixel {};
  A2S_HD Pixel pixel(const Element&, bool) const { return {}; }
  A2S_HD void write(const Pixel&, const Element& e, const acc_t<T> (&v)[S]) const {
    acc_t<T> s;
    merged.at(e.n, e.c, e.y, e.x) = static_cast<T>(largest(v, s));
    winner.at(e.n, e.c, e.y, e.x) = static_cast<uint8_t>(s);
  }
};

// The gradient of the recalibration: grad times the merged scores before it.
template <class T, int S>
struct RecalibrationGrad {
  Map<const T> grad, weights;
  Map<T> out;

  struct Pixel {
    acc_t<T> w[S];
  };
  A2S_HD Pixel pixel(const Element& e, bool) const {
    Pixel pixel;
    for (int s = 0; s < S; ++s) pixel.w[s] = static_cast<acc_t<T>>(weights.at(e.n, s, e.y, e.x));
    return pixel;
  }
  A2S_HD void write(const Pixel& pixel, const Element& e, const acc_t<T> (&v)[S]) const {
    const auto g = static_cast<acc_t<T>>(grad.at(e.n, e.c, e.y, e.x));
    out.at(e.n, e.c, e.y, e.x) = static_cast<T>(g * weighted_sum(pixel.w, v));
  }
};

// The gradient of the merged scores, times the recalibration if there is one.
template <class T>
struct MergedGrad {
  Map<const T> grad, recalibration;

  A2S_HD acc_t<T> at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const auto g = static_cast<acc_t<T>>(grad.at(n, c, y, x));
    return recalibration.data ? g * static_cast<acc_t<T>>(recalibration.at(n, c, y, x)) : g;
  }
};

// The gradient of the weights on the merged grid and, where that is the logits' grid, from there through the softmax.
// A block's threads first sum over shares of the channels of kPixels pixels, then a thread a pixel adds the shares.
template <class T, int S, bool ThroughSoftmax>
struct WeightGrad {
  using Acc = acc_t<T>;
  using Out = std::conditional_t<ThroughSoftmax, T, Acc>;
  static constexpr int kPixels = 32, kShares = kBlockThreads / kPixels;

  ScaleSet<T, S> scales;
  MergedGrad<T> grad;
  Map<const T> grad_weights, weights;  // data of grad_weights is null if there is none
  Map<Out> out;

  struct Shared {
    Acc sum[S][kShares][kPixels];
  };

  int64_t blocks() const { return (out.n * out.h * out.w + kPixels - 1) / kPixels; }

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    const bool interleaved = grad.grad.channels_last;
    const int p = interleaved ? thread / kShares : thread % kPixels;
    const int share = interleaved ? thread % kShares : thread / kPixels;
    const int64_t i = block * kPixels + p;
    if (i >= out.n * out.h * out.w) return;
    const Element e = element_at(i, 1, out.h, out.w, false);
    PixelTaps taps[S];
    for (int s = 0; s < S; ++s) taps[s] = taps_at(scales.resize[s], e.y, e.x);
    Acc sum[S] = {};
    for (int64_t c = share; c < grad.grad.c; c += kShares) {
      const Acc g = grad.at(e.n, c, e.y, e.x);
      for (int s = 0; s < S; ++s) sum[s] += g * sample(scales.map[s], scales.resize[s].copies, taps[s], e.n, c);
    }
    for (int s = 0; s < S; ++s) shared.sum[s][share][p] = sum[s];
  }

  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    const int64_t i = block * kPixels + thread;
    if (thread >= kPixels || i >= out.n * out.h * out.w) return;
    const Element e = element_at(i, 1, out.h, out.w, false);
    Acc g[S];
    for (int s = 0; s < S; ++s) {
      g[s] = grad_weights.data ? static_cast<Acc>(grad_weights.at(e.n, s, e.y, e.x)) : Acc(0);
      for (int share = 0; share < kShares; ++share) g[s] += shared.sum[s][share][thread];
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
  Resize resize;
  Map<T> grad_logits;

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const Element e = element_at(i, 1, logits.h, logits.w, false);
    int64_t y_first, y_last, x_first, x_last;
    resize.y.readers(e.y, y_first, y_last);
    resize.x.readers(e.x, x_first, x_last);
    Acc w[S], g[S] = {};
    for (int64_t y = y_first; y <= y_last; ++y) {
      for (int64_t x = x_first; x <= x_last; ++x) {
        const Acc weight = resize.y.template weight<Acc>(y, e.y) * resize.x.template weight<Acc>(x, e.x);
        for (int s = 0; s < S; ++s) g[s] += weight * weight_grad.at(e.n, s, y, x);
      }
    }
    softmax_at(logits, e.n, e.y, e.x, w);
    softmax_backward(g, w);
    for (int s = 0; s < S; ++s) grad_logits.at(e.n, s, e.y, e.x) = static_cast<T>(g[s]);
  }
};

// What an output passes back to scores[s] under attention: weights[s] * grad.
template <class T>
struct WeightedGrad {
  MergedGrad<T> grad;
  Map<const T> weights;
  int s;

  A2S_HD acc_t<T> factor(int64_t n, int64_t y, int64_t x) const {
    return static_cast<acc_t<T>>(weights.at(n, s, y, x));
  }
  A2S_HD acc_t<T> at(int64_t n, int64_t c, int64_t y, int64_t x) const { return grad.at(n, c, y, x); }
  template <int V>
  A2S_HD void add(acc_t<T> weight, int64_t n, int64_t c, int64_t y, int64_t x, acc_t<T> (&sum)[V]) const {
    for (int k = 0; k < V; ++k) sum[k] += weight * at(n, c + k, y, x);
  }
};

// The same under max merging: grad where s won.
template <class T>
struct WonGrad {
  Map<const T> grad;
  Map<const uint8_t> winner;
  int s;

  A2S_HD acc_t<T> factor(int64_t, int64_t, int64_t) const { return 1; }
  A2S_HD acc_t<T> at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return grad_if_won(static_cast<acc_t<T>>(grad.at(n, c, y, x)), winner.at(n, c, y, x), s);
  }
  template <int V>
  A2S_HD void add(acc_t<T> weight, int64_t n, int64_t c, int64_t y, int64_t x, acc_t<T> (&sum)[V]) const {
    for (int k = 0; k < V; ++k) sum[k] += weight * at(n, c + k, y, x);
  }
};

// The gradients of weights and scores in one launch: the first blocks are those of the weights.
template <class T, int S, bool ThroughSoftmax>
struct MergeBackward {
  using Weights = WeightGrad<T, S, ThroughSoftmax>;
  using Scores = GatherAll<T, WeightedGrad<T>, S>;
  Weights weights;
  Scores scores;
  int64_t weight_blocks;

  union Shared {
    typename Weights::Shared weights;
    typename Scores::Shared scores;
  };

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    if (block < weight_blocks) weights.prepare(block, thread, shared.weights);
    else scores.prepare(block - weight_blocks, thread, shared.scores);
  }
  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    if (block < weight_blocks) weights.finish(block, thread, shared.weights);
    else scores.finish(block - weight_blocks, thread, shared.scores);
  }
};

// A thread computes the weights of pixel (y, x), for any number of scales.
template <class T>
struct ScaleSoftmax {
  Map<const T> logits;
  Map<T> weights;

  A2S_HD void operator()(int64_t i) const {
    const Element e = element_at(i, 1, logits.h, logits.w, false);
    softmax_pixel(logits, weights, e.n, e.y, e.x);
  }
};

template <class T>
struct ScaleSoftmaxBackward {
  Map<const T> grad, weights;
  Map<T> grad_logits;

  A2S_HD void operator()(int64_t i) const {
    const Element e = element_at(i, 1, grad.h, grad.w, false);
    softmax_pixel_backward(grad, weights, grad_logits, e.n, e.y, e.x);
  }
};

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
                                       int64_t width, const std::optional<Tensor>& recalibration) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  check_recalibration("scale_merge", recalibration, merged);
  dispatch_merge("scale_merge", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const AttentionMerge<T, S> op{map_of<const T>(logits), Resize(logits.size(2), logits.size(3), height, width),
                                  optional_map<T>(recalibration), map_of<T>(merged), map_of<T>(weights)};
    launch_resize<Launch>(merged, ScaleSet<T, S>(scores, height, width), op);
  });
  return {merged, weights};
}

template <class Launch>
std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> scale_merge_backward(
    const Tensor& grad, const std::optional<Tensor>& grad_weights, const std::vector<Tensor>& scores,
    const Tensor& logits, const Tensor& weights, const std::optional<Tensor>& recalibration) {
  check_merge_backward("scale_merge_backward", grad, grad_weights, scores, logits, weights);
  check_recalibration("scale_merge_backward", recalibration, grad);
  const int64_t height = grad.size(2), width = grad.size(3);
  std::vector<Tensor> grad_scores = empty_same_all(scores), grad_recalibration;
  Tensor grad_logits = empty_same(logits);
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scale_set(scores, height, width);
    const MergedGrad<T> merged_grad{map_of<const T>(grad), optional_map<T>(recalibration)};
    const Map<const T> weight_map = map_of<const T>(weights);
    const auto launch = [&](auto through_softmax, const Tensor& weight_grad) {
      constexpr bool kThroughSoftmax = decltype(through_softmax)::value;
      using Weights = WeightGrad<T, S, kThroughSoftmax>;
      const Weights weight_part{scale_set, merged_grad, optional_map<T>(grad_weights), weight_map,
                                map_of<typename Weights::Out>(weight_grad)};
      const MergeBackward<T, S, kThroughSoftmax> kernel{
          weight_part,
          {grad_scores, height, width, [&](int s) { return WeightedGrad<T>{merged_grad, weight_map, s}; }},
          weight_part.blocks()};
      Launch::run_blocks(grad, kernel.weight_blocks + kernel.scores.blocks(), kernel);
    };
    const Resize weight_resize(logits.size(2), logits.size(3), height, width);
    if (weight_resize.copies) {
      launch(std::true_type{}, grad_logits);
    } else {
      const Tensor weight_grad = empty_planes<Acc>(weights);
      launch(std::false_type{}, weight_grad);
      Launch::run(grad, logits.size(0) * logits.size(2) * logits.size(3),
                  LogitGrad<T, S>{map_of<const T>(logits), map_of<const Acc>(weight_grad), weight_resize,
                                  map_of<T>(grad_logits)});
    }
    if (recalibration) {
      grad_recalibration.push_back(empty_same(*recalibration));
      launch_resize<Launch>(grad_recalibration[0], scale_set,
                            RecalibrationGrad<T, S>{merged_grad.grad, weight_map, map_of<T>(grad_recalibration[0])});
    }
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

template <class Launch>
Tensor scale_average(const std::vector<Tensor>& scores, int64_t height, int64_t width, double factor) {
  Tensor merged = empty_merged("scale_average", scores, height, width);
  dispatch_merge("scale_average", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    launch_resize<Launch>(merged, ScaleSet<T, S>(scores, height, width),
                          AverageMerge<T, S>{map_of<T>(merged), static_cast<float>(factor)});
  });
  return merged;
}

// Fills the gradients of all scores in one launch; value_of(type, s) is what outputs pass back to scores[s].
template <class Launch, class ValueOf>
void gather_scores(const char* op, const Tensor& grad, const std::vector<Tensor>& grad_scores,
                   const ValueOf& value_of) {
  dispatch_merge(op, grad_scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Value = decltype(value_of(type, 0));
    const GatherAll<T, Value, decltype(count)::value> kernel(grad_scores, grad.size(2), grad.size(3),
                                                             [&](int s) { return value_of(type, s); });
    Launch::run_blocks(grad, kernel.blocks(), kernel);
  });
}

template <class Launch>
std::vector<Tensor> scale_average_backward(const Tensor& grad, const std::vector<Tensor>& scores, double factor) {
  check_average_backward("scale_average_backward", grad, scores);
  std::vector<Tensor> grad_scores = empty_grads(grad, scores);
  gather_scores<Launch>("scale_average_backward", grad, grad_scores, [&](auto type, int) {
    using T = typename decltype(type)::type;
    return ScaledGrad<T>{map_of<const T>(grad), static_cast<float>(factor)};
  });
  return grad_scores;
}

template <class Launch>
std::tuple<Tensor, Tensor> scale_max(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  Tensor merged = empty_merged("scale_max", scores, height, width);
  Tensor winner = empty_winner(merged);
  dispatch_merge("scale_max", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    launch_resize<Launch>(merged, ScaleSet<T, S>(scores, height, width),
                          MaxMerge<T, S>{map_of<T>(merged), map_of<uint8_t>(winner)});
  });
  return {merged, winner};
}

template <class Launch>
std::vector<Tensor> scale_max_backward(const Tensor& grad, const Tensor& winner, const std::vector<Tensor>& scores) {
  check_max_backward("scale_max_backward", grad, winner, scores);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  gather_scores<Launch>("scale_max_backward", grad, grad_scores, [&](auto type, int s) {
    using T = typename decltype(type)::type;
    return WonGrad<T>{map_of<const T>(grad), map_of<const uint8_t>(winner), s};
  });
  return grad_scores;
}

}  // namespace a2s
