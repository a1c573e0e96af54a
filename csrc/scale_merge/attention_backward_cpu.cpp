// The CPU loops of attention merging's gradients, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include <functional>

#include "merge_rows.h"

namespace {

using namespace a2s;

// The rows of the merged scores' gradient, and of the recalibration if there is one.
template <class T>
class GradRows {
 public:
  GradRows(const Tensor& grad, const std::optional<Tensor>& recalibration, bool interleaved)
      : rows_(map_of<const T>(grad), interleaved), recalibration_(optional_rows<T>(recalibration, interleaved)),
        buffer_(rows_.values()), recalibration_buffer_(recalibration_ ? rows_.values() : 0) {}

  int64_t planes_per_image() const { return rows_.planes_per_image(); }

  // Both are valid until the next call.
  const T* grad(int64_t plane, int64_t y) { return rows_.read(plane, y, buffer_.data()); }
  // Null if there is no recalibration.
  const T* recalibration(int64_t plane, int64_t y) {
    return recalibration_ ? recalibration_->read(plane, y, recalibration_buffer_.data()) : nullptr;
  }

 private:
  Rows<const T> rows_;
  std::optional<Rows<const T>> recalibration_;
  std::vector<T> buffer_, recalibration_buffer_;
};

// The arguments of scale_merge_backward.
struct BackwardInputs {
  const Tensor& grad;
  const std::optional<Tensor>& grad_weights;
  const std::vector<Tensor>& scores;
  const Tensor& logits;
  const Tensor& weights;
  const std::optional<Tensor>& recalibration;
};

// Takes row y of image n of the gradient of the weights on the merged grid, and the weights themselves.
template <class Acc>
using TakeRow = std::function<void(int64_t n, int64_t y, const RowSet<Acc>& grad, const RowSet<Acc>& weights)>;

// Passes all rows of the weights' gradient to `take_row`, and fills the gradient of the recalibration if there is one.
template <class T>
void weight_grad_rows(const BackwardInputs& m, const TakeRow<acc_t<T>>& take_row,
                      const std::vector<Tensor>& recalibration_grad) {
  using Acc = acc_t<T>;
  const bool interleaved = takes_interleaved(map_of<const T>(m.grad));
  const int64_t height = m.grad.size(2), width = m.grad.size(3), count = m.weights.size(1);
  const ScaleChannels<const T> weight_rows(map_of<const T>(m.weights));
  std::optional<Rows<T>> recalibration_grad_rows;
  if (m.recalibration) recalibration_grad_rows.emplace(map_of<T>(recalibration_grad[0]), interleaved);
  std::optional<ScaleChannels<const T>> grad_weight_rows;
  if (m.grad_weights) grad_weight_rows.emplace(map_of<const T>(*m.grad_weights));
  for_each_part(m.grad.size(0) * height, m.grad.size(1) * width, [&](int64_t begin, int64_t end) {
    ScaleRows<T> scales(m.scores, height, width, interleaved);
    GradRows<T> grads(m.grad, m.recalibration, interleaved);
    const int64_t most = std::min(band_rows(2 * count * width), end - begin);
    std::vector<Acc> band(most * count * width), weight_band(most * count * width);
    std::vector<T> buffer(recalibration_grad_rows ? recalibration_grad_rows->values() : 0);
    for_each_band(begin, end, height, most, [&](int64_t n, int64_t first, int64_t last) {
      const auto sums_of = [&](int64_t y) { return RowSet<Acc>{&band[(y - first) * count * width], count, width}; };
      const auto weights_of = [&](int64_t y) {
        return RowSet<Acc>{&weight_band[(y - first) * count * width], count, width};
      };
      for (int64_t y = first; y < last; ++y) weight_rows.load(n, y, weights_of(y));
      if (grad_weight_rows) {
        for (int64_t y = first; y < last; ++y) grad_weight_rows->load(n, y, sums_of(y));
      } else {
        std::fill(band.begin(), band.end(), Acc(0));
      }
      for (int64_t p = 0; p < grads.planes_per_image(); ++p) {
        const int64_t plane = n * grads.planes_per_image() + p;
        for (int64_t y = first; y < last; ++y) {
          const T* grad = grads.grad(plane, y);
          T* out = recalibration_grad_rows ? recalibration_grad_rows->in_place(plane, y, buffer.data()) : nullptr;
          const SumGrad<T> sum_grad{grad, grads.recalibration(plane, y), out, weights_of(y)};
          add_products(scales, plane, y, sum_grad, sums_of(y));
          if (out) recalibration_grad_rows->store(plane, y, out);
        }
      }
      for (int64_t y = first; y < last; ++y) take_row(n, y, sums_of(y), weights_of(y));
    });
  });
}

// Fills `out` with the gradient of logits on a grid of their own, from that of the weights on the merged grid.
template <class T>
void logit_grad_rows(const BackwardInputs& m, const Tensor& weight_grad, const Map<T>& out) {
  using Acc = acc_t<T>;
  const ScaleChannels<const T> logit_rows(map_of<const T>(m.logits));
  const Rows<const Acc> weight_grad_rows(map_of<const Acc>(weight_grad), false);
  const ScaleChannels<T> out_rows(out);
  const Resize resize(out.h, out.w, weight_grad.size(2), weight_grad.size(3));
  for_each_part(out.n * out.h, out.c * weight_grad.size(3), [&](int64_t begin, int64_t end) {
    GatheredRows<Acc> gathered(resize, 1);
    std::vector<Acc> weight_buffer(out.c * out.w), grad_buffer(out.c * out.w);
    const RowSet<Acc> weights{weight_buffer.data(), out.c, out.w}, grads{grad_buffer.data(), out.c, out.w};
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / out.h, i = r % out.h;
      logit_rows.load(n, i, weights);
      softmax_row(weights);
      for (int64_t s = 0; s < out.c; ++s) {
        const auto value_of = [&](int64_t y) {
          return ScaledValue<Acc>{weight_grad_rows.start(n * out.c + s, y), 1};
        };
        gathered.row(i, value_of, grads.row(s));
      }
      softmax_backward_row(grads, weights);
      out_rows.store(n, i, grads);
    }
  });
}

// Fills the gradient of the logits, and that of the recalibration if there is one.
template <class T>
void logit_and_recalibration_grads(const BackwardInputs& m, const Tensor& grad_logits,
                                   const std::vector<Tensor>& grad_recalibration) {
  using Acc = acc_t<T>;
  using Set = RowSet<Acc>;
  const int64_t height = m.grad.size(2), width = m.grad.size(3);
  const Map<T> out = map_of<T>(grad_logits);
  if (out.h == height && out.w == width) {
    const ScaleChannels<T> out_rows(out);
    const auto take_row = [&](int64_t n, int64_t y, const Set& grad, const Set& weights) {
      softmax_backward_row(grad, weights);
      out_rows.store(n, y, grad);
    };
    weight_grad_rows<T>(m, take_row, grad_recalibration);
  } else {
    const Tensor weight_grad = empty_planes<Acc>(m.weights, m.weights.size(1));
    const ScaleChannels<Acc> weight_grad_out(map_of<Acc>(weight_grad));
    const auto take_row = [&](int64_t n, int64_t y, const Set& grad, const Set&) { weight_grad_out.store(n, y, grad); };
    weight_grad_rows<T>(m, take_row, grad_recalibration);
    logit_grad_rows<T>(m, weight_grad, out);
  }
}

// Fills the gradient of the scores of scale s.
template <bool Recalibrated, class T>
void score_grad_rows(const BackwardInputs& m, int64_t s, const Map<T>& out) {
  const int64_t height = m.grad.size(2), width = m.grad.size(3), scales = m.weights.size(1);
  const Rows<const T> weight_rows(map_of<const T>(m.weights), false);
  gather_rows(out, Resize(out.h, out.w, height, width), [&] {
    return [&, grads = GradRows<T>(m.grad, m.recalibration, takes_interleaved(out)),
            buffer = std::vector<T>(width)](int64_t plane, int64_t y) mutable {
      const T* weight = weight_rows.read(plane / grads.planes_per_image() * scales + s, y, buffer.data());
      return WeightedValue<Recalibrated, T>{weight, grads.grad(plane, y), grads.recalibration(plane, y)};
    };
  });
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> scale_merge_backward_cpu(
    const Tensor& grad, const std::optional<Tensor>& grad_weights, const std::vector<Tensor>& scores,
    const Tensor& logits, const Tensor& weights, const std::optional<Tensor>& recalibration) {
  check_merge_backward("scale_merge_backward", grad, grad_weights, scores, logits, weights);
  check_recalibration("scale_merge_backward", recalibration, grad);
  const BackwardInputs merge{grad, grad_weights, scores, logits, weights, recalibration};
  std::vector<Tensor> grad_scores = empty_same_all(scores), grad_recalibration;
  if (recalibration) grad_recalibration.push_back(empty_same(*recalibration));
  Tensor grad_logits = empty_same(logits);
  dispatch_cpu("scale_merge_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    logit_and_recalibration_grads<T>(merge, grad_logits, grad_recalibration);
    for (size_t s = 0; s < scores.size(); ++s) {
      const Map<T> out = map_of<T>(grad_scores[s]);
      const auto scale = static_cast<int64_t>(s);
      if (recalibration) score_grad_rows<true>(merge, scale, out);
      else score_grad_rows<false>(merge, scale, out);
    }
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) { m.impl("scale_merge_backward", TORCH_BOX(&scale_merge_backward_cpu)); }
