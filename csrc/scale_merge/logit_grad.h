// The gradient of the attention's logits on a GPU, from that of the weights: for each pixel of the merged grid and each
// scale, the sum over channels of grad * resized score.
#pragma once

#include "merge.h"
#include "score_grads.h"

namespace a2s {

// The gradient of one scale's weights, (H, W) for each image, in parts that are to be added.
template <class Acc>
struct WeightGrad {
  Acc* data;
  int parts;
  int64_t stride_n, stride_part;
};

// A thread owns a pixel of the logits' grid: Interp's adjoint of the weights' gradient, then through the softmax.
template <class T>
struct LogitGradArguments {
  Map<const T> from;          // the weights if they have the grid of the logits, else the logits
  Map<const T> grad_weights;  // its data is null if there is none
  WeightGrad<acc_t<T>> weight_grad[kMaxScales];
  Resize resize;
  Map<T> grad_logits;
  Tiling tiling;  // without channels
};

template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4)
    logit_grad(const __grid_constant__ LogitGradArguments<T> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = tile.x + threadIdx.x, y = tile.y;
  if (static_cast<int>(threadIdx.x) >= tile.width) return;
  const auto scales = static_cast<int>(a.from.c);
  Acc w[kMaxScales], g[kMaxScales] = {};
  const auto add = [&](int v, int u, Acc weight) {
    const T* given = row_of(a.grad_weights, tile.n, 0, u, v);
#pragma unroll
    for (int s = 0; s < kMaxScales; ++s) {
      if (s >= scales) break;
      const WeightGrad<Acc>& of = a.weight_grad[s];
      const Acc* part = of.data + (tile.n * of.stride_n + v * a.resize.x.out + u);
      Acc sum = a.grad_weights.data ? static_cast<Acc>(given[s * a.grad_weights.stride_c]) : Acc(0);
#pragma unroll 1
      for (int i = of.parts; i > 0; --i, part += of.stride_part) sum += *part;
      g[s] += weight * sum;
    }
  };
  if (a.resize.copies) {
    add(y, x, 1);
  } else {
    int64_t y_first, y_last, x_first, x_last;
    a.resize.y.readers(y, y_first, y_last);
    a.resize.x.readers(x, x_first, x_last);
    for (int64_t v = y_first; v <= y_last; ++v) {
      const Acc weight_y = a.resize.y.template weight<Acc>(v, y);
      for (int64_t u = x_first; u <= x_last; ++u) add(v, u, weight_y * a.resize.x.template weight<Acc>(u, x));
    }
  }
  // Scales that are not there have weight 0.
  const T* from = row_of(a.from, tile.n, 0, x, y);
#pragma unroll
  for (int s = 0; s < kMaxScales; ++s, from += a.from.stride_c) {
    w[s] = s < scales ? static_cast<Acc>(*from) : a.resize.copies ? Acc(0) : -INFINITY;
  }
  if (!a.resize.copies) softmax(w);
  softmax_backward(g, w);
  T* to = place_in(a.grad_logits, tile.n, 0, x, y);
#pragma unroll
  for (int s = 0; s < kMaxScales; ++s, to += a.grad_logits.stride_c) {
    if (s < scales) *to = static_cast<T>(g[s]);
  }
}

// The gradients of the weights of some maps, and of the recalibration, where the maps are not gathered in pairs. A
// thread owns a pixel of the merged grid.
template <class T, class Value>
struct PlainWeightGradArguments {
  Value value;
  int count;
  int number[kMaxScales];  // of the maps among the scores
  Map<const T> scores[kMaxScales];
  Resize resize[kMaxScales];
  acc_t<T>* sums[kMaxScales];
  int64_t stride_n;  // of the sums
  Tiling tiling;     // without channels
};

template <class T, class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    plain_weight_grad(const __grid_constant__ PlainWeightGradArguments<T, Value> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int n = tile.n, x = tile.x + threadIdx.x, y = tile.y;
  if (static_cast<int>(threadIdx.x) >= tile.width) return;
  Acc sums[kMaxScales] = {};
#pragma unroll 1
  for (int c = 0; c < static_cast<int>(a.value.grad.c); ++c) {
    typename Value::Read read[1];
    a.value.read(a.value.place(n, c, x, y), read);
    Acc merged = 0;
#pragma unroll
    for (int i = 0; i < kMaxScales; ++i) {
      if (i >= a.count) break;
      const Map<const T>& map = a.scores[i];
      const PixelTaps at = taps_at(a.resize[i], y, x);
      const auto row = [&](int v) {
        const Acc left = map.at(n, c, v, at.x.low), right = map.at(n, c, v, at.x.high);
        return lerp(left, right, static_cast<Acc>(at.x.lambda));
      };
      const Acc score = lerp(row(at.y.low), row(at.y.high), static_cast<Acc>(at.y.lambda));
      sums[i] += read[0].passed * score;
      if (Value::kRecalibrated) merged += static_cast<Acc>(*a.value.weight(n, a.number[i], x, y)) * score;
    }
    if (Value::kRecalibrated) a.value.grad_recalibration.at(n, c, y, x) = static_cast<T>(read[0].grad * merged);
  }
#pragma unroll
  for (int i = 0; i < kMaxScales; ++i) {
    if (i < a.count) a.sums[i][n * a.stride_n + y * int64_t{a.tiling.all_width} + x] = sums[i];
  }
}

// The scores of a merge under attention, and the gradients of their weights.
template <class T, class Value>
class AttentionScores {
 public:
  using Acc = acc_t<T>;

  AttentionScores(const std::vector<Tensor>& scores, const Tensor& grad, const Value& value)
      : grad_(grad), value_(value) {
    for (const Tensor& score : scores) scores_.push_back(addressable(score, is_channels_last(score)));
  }

  Map<const T> map(int s) const { return map_of<const T>(scores_[s]); }
  // Whether neighbours lie where gather_pair expects them.
  bool gathers(int s) const { return is_channels_last(scores_[s]) || map(s).stride_w == 1; }

  // Allocates the dot products of a launch of gather_pair.
  auto dots_of(const std::vector<PairedMap<T>>& pair, const OwnMap<T>& own) {
    return [&](int64_t tiles) {
      Acc* const sums = allocate(3 * tiles);
      const auto add = [&](int s, int64_t plane) {
        weight_grad_[s] = {sums + plane * pixels(), static_cast<int>(tiles), 3 * tiles * pixels(), 3 * pixels()};
      };
      for (size_t i = 0; i < pair.size(); ++i) add(pair[i].s, static_cast<int64_t>(i));
      if (own.out.data) add(own.s, 2);
      return sums;
    };
  }

  // Computes those of maps that are not gathered in pairs.
  void add_plain(const std::vector<int>& maps) {
    PlainWeightGradArguments<T, Value> a{value_};
    Acc* sums = allocate(maps.size());
    a.stride_n = maps.size() * pixels();
    for (const int s : maps) {
      const int i = a.count++;
      a.number[i] = s;
      a.scores[i] = map(s);
      a.resize[i] = Resize(a.scores[i].h, a.scores[i].w, grad_.size(2), grad_.size(3));
      a.sums[i] = sums + i * pixels();
      weight_grad_[s] = {a.sums[i], 1, a.stride_n, 0};
    }
    launch_pixels(grad_, a, plain_weight_grad<T, Value>);
  }

  void launch_logit_grad(const Tensor& logits, const std::optional<Tensor>& grad_weights, const Tensor& grad_logits) {
    LogitGradArguments<T> a{map_of<const T>(logits), optional_map<T>(grad_weights)};
    std::copy_n(weight_grad_, kMaxScales, a.weight_grad);
    a.resize = Resize(logits.size(2), logits.size(3), grad_.size(2), grad_.size(3));
    if (a.resize.copies) a.from = value_.weights;
    a.grad_logits = map_of<T>(grad_logits);
    launch_pixels(logits, a, logit_grad<T>);
  }

 private:
  int64_t pixels() const { return grad_.size(2) * grad_.size(3); }

  // With a thread for each pixel of `on`.
  template <class Arguments>
  void launch_pixels(const Tensor& on, Arguments& a, void (*kernel)(Arguments)) {
    a.tiling = Tiling(on.size(0), on.size(2), on.size(3), 1, 1, kBlockThreads, 1);
    launch(on, a.tiling.blocks(), Places(a.tiling.width, 1, false).threads(), 0, kernel, a);
  }

  Acc* allocate(int64_t planes) {
    held_.push_back(empty_planes<Acc>(grad_, planes));
    return static_cast<Acc*>(held_.back().data_ptr());
  }

  std::vector<Tensor> scores_, held_;
  const Tensor& grad_;
  Value value_;
  WeightGrad<Acc> weight_grad_[kMaxScales] = {};
};

}  // namespace a2s
