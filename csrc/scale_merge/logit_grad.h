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

constexpr int kPixelThreads = 64;
constexpr int64_t kPixelBlocksWanted = 16 * kMultiprocessors;

// The pixels of a map, whose images are cut into strips of rows. A thread takes a column of a strip. Columns follow one
// another across the ends of rows, which need not fill warps.
struct PixelColumns {
  uint32_t count;
  int height, rows;  // of the map, and of a strip at most
  Divisor width, strips;

  struct Column {
    int n, x, y, end;  // rows [y, end)
  };

  PixelColumns() = default;
  PixelColumns(const Tensor& map, int64_t rows)
      : height(static_cast<int>(map.size(2))), rows(static_cast<int>(rows)), width(map.size(3)),
        strips(ceil_div(height, rows)) {
    const int64_t columns = map.size(0) * strips.divisor * width.divisor;
    check_blocks(columns);
    count = static_cast<uint32_t>(columns);
  }

  int64_t blocks() const { return ceil_div(count, kPixelThreads); }

#if defined(__CUDACC__)
  // That of the calling thread; false if there is none.
  __device__ bool take(Column& column) const {
    const uint32_t i = blockIdx.x * kPixelThreads + threadIdx.x;
    if (i >= count) return false;
    int x = static_cast<int>(i), strip = width.split(x);
    const int n = strips.split(strip), y = strip * rows;
    column = {n, x, y, min(y + rows, height)};
    return true;
  }
#endif
};

// A map with a channel for each scale.
template <class T>
struct ScalesMap : Map<T> {
  int64_t next_row, next_scale;  // in bytes

  ScalesMap() = default;
  explicit ScalesMap(const Map<T>& map)
      : Map<T>(map), next_row(bytes_between_rows(map)), next_scale(map.stride_c * static_cast<int64_t>(sizeof(T))) {}
};

// All on the grid of the logits.
template <class T>
struct LogitGradArguments {
  ScalesMap<const T> from;  // the weights, or the logits if the weights are not on this grid
  bool from_weights;
  ScalesMap<const T> grad_weights;  // its data is null if there is none
  ScalesMap<T> grad_logits;
  WeightGrad<acc_t<T>> weight_grad[kMaxScales];
  int64_t next_sum;  // bytes between rows of these
  PixelColumns columns;
};

constexpr int kLogitRows = 4;  // that a thread takes at most

// From the gradient of the weights through the softmax. A thread goes down a column of pixels.
template <class T>
__global__ void __launch_bounds__(kPixelThreads, sizeof(T) == 8 ? 8 : 16)
    logit_grad(const __grid_constant__ LogitGradArguments<T> a) {
  using Acc = acc_t<T>;
  PixelColumns::Column at;
  if (!a.columns.take(at)) return;
  const auto scales = static_cast<int>(a.from.c);
  // Scales that are not there have weight 0.
  Acc absent = a.from_weights ? Acc(0) : -INFINITY;
  keep(absent);
  const T* from = row_of(a.from, at.n, 0, at.x, at.y);
  const T* given = a.grad_weights.data ? row_of(a.grad_weights, at.n, 0, at.x, at.y) : nullptr;
  T* to = place_in(a.grad_logits, at.n, 0, at.x, at.y);
  const Acc* sums[kMaxScales];
#pragma unroll
  for (int s = 0; s < kMaxScales; ++s) {
    if (s >= scales) break;
    const WeightGrad<Acc>& of = a.weight_grad[s];
    sums[s] = moved(of.data + (at.n * of.stride_n + at.x), at.y * a.next_sum);
  }
#pragma unroll 1
  for (int y = at.y; y < at.end; ++y) {
    Acc w[kMaxScales], g[kMaxScales];
    const T* from_scale = from;
#pragma unroll
    for (int s = 0; s < kMaxScales; ++s, from_scale = moved(from_scale, a.from.next_scale)) {
      w[s] = absent;
      g[s] = 0;
      if (s >= scales) continue;
      w[s] = static_cast<Acc>(*from_scale);
      const Acc* part = sums[s];
      g[s] = *part;
#pragma unroll 4
      for (int i = a.weight_grad[s].parts - 1; i > 0; --i) g[s] += *(part += a.weight_grad[s].stride_part);
      sums[s] = moved(sums[s], a.next_sum);
    }
    if (given) {
      const T* given_scale = given;
#pragma unroll
      for (int s = 0; s < kMaxScales; ++s, given_scale = moved(given_scale, a.grad_weights.next_scale)) {
        if (s < scales) g[s] += static_cast<Acc>(*given_scale);
      }
      given = moved(given, a.grad_weights.next_row);
    }
    if (!a.from_weights) softmax(w);
    softmax_backward(g, w);
    T* to_scale = to;
#pragma unroll
    for (int s = 0; s < kMaxScales; ++s, to_scale = moved(to_scale, a.grad_logits.next_scale)) {
      if (s < scales) *to_scale = static_cast<T>(g[s]);
    }
    from = moved(from, a.from.next_row);
    to = moved(to, a.grad_logits.next_row);
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
  PixelColumns columns;
};

template <class T, class Value>
__global__ void __launch_bounds__(kPixelThreads, 8)
    plain_weight_grad(const __grid_constant__ PlainWeightGradArguments<T, Value> a) {
  using Acc = acc_t<T>;
  PixelColumns::Column at;
  if (!a.columns.take(at)) return;
  const int n = at.n, x = at.x, y = at.y;
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
      const PixelTaps taps = taps_at(a.resize[i], y, x);
      const auto row = [&](int v) {
        const Acc left = map.at(n, c, v, taps.x.low), right = map.at(n, c, v, taps.x.high);
        return lerp(left, right, static_cast<Acc>(taps.x.lambda));
      };
      const Acc score = lerp(row(taps.y.low), row(taps.y.high), static_cast<Acc>(taps.y.lambda));
      sums[i] += read[0].passed * score;
      if (Value::kRecalibrated) merged += static_cast<Acc>(*a.value.weight(n, a.number[i], x, y)) * score;
    }
    if (Value::kRecalibrated) a.value.grad_recalibration.at(n, c, y, x) = static_cast<T>(read[0].grad * merged);
  }
#pragma unroll
  for (int i = 0; i < kMaxScales; ++i) {
    if (i < a.count) a.sums[i][n * a.stride_n + y * a.value.grad.w + x] = sums[i];
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
      if (own.s >= 0) add(own.s, 2);
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
    launch_pixels(grad_, a, plain_weight_grad<T, Value>, 1);
  }

  void launch_logit_grad(const Tensor& logits, const std::optional<Tensor>& grad_weights, const Tensor& grad_logits) {
    LogitGradArguments<T> a{};
    std::optional<Tensor> given = grad_weights;
    a.from_weights = logits.size(2) == grad_.size(2) && logits.size(3) == grad_.size(3);
    if (!a.from_weights) {
      gather_weight_grad(logits);
      if (grad_weights) {
        given = empty_same(logits);
        interp_adjoint({*grad_weights}, {*given});
      }
    }
    a.from = ScalesMap<const T>(a.from_weights ? value_.weights : map_of<const T>(logits));
    a.grad_weights = ScalesMap<const T>(optional_map<T>(given));
    a.grad_logits = ScalesMap<T>(map_of<T>(grad_logits));
    std::copy_n(weight_grad_, kMaxScales, a.weight_grad);
    a.next_sum = logits.size(3) * static_cast<int64_t>(sizeof(Acc));
    launch_pixels(logits, a, logit_grad<T>, kLogitRows);
  }

 private:
  int64_t pixels() const { return grad_.size(2) * grad_.size(3); }

  // Brings the gradients of the weights to the grid of `logits`, by Interp's adjoint.
  void gather_weight_grad(const Tensor& logits) {
    const int64_t height = grad_.size(2), width = grad_.size(3);
    std::vector<Tensor> from, to;
    for (int s = 0; s < static_cast<int>(scores_.size()); ++s) {
      WeightGrad<Acc>& of = weight_grad_[s];
      const std::array<int64_t, 4> size{grad_.size(0), of.parts, height, width};
      const std::array<int64_t, 4> stride{of.stride_n, of.stride_part, width, 1};
      to.push_back(empty_planes<Acc>(logits, of.parts));
      from.push_back(torch::stable::from_blob(of.data, {size.data(), size.size()}, {stride.data(), stride.size()},
                                              grad_.device(), to.back().scalar_type()));
      const int64_t pixels = logits.size(2) * logits.size(3);
      of = {static_cast<Acc*>(to.back().data_ptr()), of.parts, of.parts * pixels, pixels};
    }
    interp_adjoint(from, to);
    held_.insert(held_.end(), to.begin(), to.end());
  }

  // A thread takes up to `most_rows` of a column, fewer where blocks would be too few.
  template <class Arguments>
  void launch_pixels(const Tensor& on, Arguments& a, void (*kernel)(Arguments), int64_t most_rows) {
    const int64_t blocks = PixelColumns(on, 1).blocks();
    a.columns = PixelColumns(on, std::clamp<int64_t>(blocks / kPixelBlocksWanted, 1, most_rows));
    launch(on, a.columns.blocks(), kPixelThreads, 0, kernel, a);
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
