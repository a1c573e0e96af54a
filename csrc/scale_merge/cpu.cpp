// The CPU loops of attention merging and of the softmax over scales, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "merge_rows.h"

namespace {

using namespace a2s;

// Rows are processed in bands, so that a band's softmax weights stay in L1 and serve all channels. A band has at least
// 16 rows, because adjacent bands recompute the source rows they share.
int64_t band_rows(int64_t values_per_row) { return std::max<int64_t>(16, 8192 / values_per_row); }

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

// Fills `out` with the gradient of the logits whose softmax is `weights`.
template <class T, int S>
void softmax_backward_rows(const ScaleChannels<const T, S>& grads, const ScaleChannels<const T, S>& weights,
                           const Map<T>& out) {
  using Acc = acc_t<T>;
  const ScaleChannels<T, S> out_rows(out);
  for_each_part(out.n * out.h, S * out.w, [&](int64_t begin, int64_t end) {
    std::vector<Acc> grad_buffer(S * out.w), weight_buffer(S * out.w);
    const RowSet<Acc, S> grad_row(grad_buffer.data(), out.w), weight_row(weight_buffer.data(), out.w);
    for (int64_t r = begin; r < end; ++r) {
      grads.load(r / out.h, r % out.h, grad_row);
      weights.load(r / out.h, r % out.h, weight_row);
      softmax_backward_row(grad_row, weight_row, out.w);
      out_rows.store(r / out.h, r % out.h, grad_row);
    }
  });
}

// The rows of the weights on the merged grid: the softmax of the logits there, or Interp of `coarse`, the softmax on
// the logits' grid.
template <class T, int S>
class WeightRows {
 public:
  using Acc = acc_t<T>;

  WeightRows(const Map<const T>& logits, const std::optional<Map<const Acc>>& coarse, const Resize& resize)
      : logits_(logits), width_(resize.x.out) {
    if (coarse) coarse_.emplace(*coarse, resize);
  }

  void fill(int64_t n, int64_t y, const RowSet<Acc, S>& weights) {
    if (coarse_) {
      for (int s = 0; s < S; ++s) {
        const ScaleRow<Acc, 1, Lerp<Acc>> row{{coarse_->row(n * S + s, y)}, nullptr, 1};
        resize_row<false>(row, width_, AverageOp<Acc, 1>{1, weights.row[s]});
      }
    } else {
      logits_.load(n, y, weights);
      softmax_row(weights, width_);
    }
  }

 private:
  ScaleChannels<const T, S> logits_;
  std::optional<PlanarRows<Acc>> coarse_;
  int64_t width_;
};

// The results of a merge.
template <class T>
struct Merged {
  Map<T> scores, weights;
  bool interleaved;
};

// Merges all rows and stores the weights. make_weight_rows() is called for each part of the rows.
template <bool Recalibrated, class T, int S, class MakeWeightRows>
void merge_rows(const ScaleSet<T, S>& scale_set, const MakeWeightRows& make_weight_rows,
                const std::optional<Tensor>& recalibration, const Merged<T>& to) {
  using Acc = acc_t<T>;
  const int64_t height = to.scores.h, width = to.scores.w;
  const Rows<T> out_rows(to.scores, to.interleaved);
  const ScaleChannels<T, S> weight_rows(to.weights);
  const auto recalibration_rows = optional_rows<T>(recalibration, to.interleaved);
  for_each_part(to.scores.n * height, to.scores.c * width, [&](int64_t begin, int64_t end) {
    ScaleRows<T, S> scales(scale_set, to.interleaved);
    auto merged_weights = make_weight_rows();
    const int64_t most = std::min(band_rows(S * width), end - begin);
    std::vector<Acc> band(most * S * width);
    std::vector<T> recalibration_buffer(Recalibrated ? out_rows.values() : 0);
    for_each_band(begin, end, height, most, [&](int64_t n, int64_t first, int64_t last) {
      const auto weights_of = [&](int64_t y) { return RowSet<Acc, S>(&band[(y - first) * S * width], width); };
      for (int64_t y = first; y < last; ++y) {
        merged_weights.fill(n, y, weights_of(y));
        weight_rows.store(n, y, weights_of(y));
      }
      for (int64_t p = 0; p < out_rows.planes_per_image(); ++p) {
        const int64_t plane = n * out_rows.planes_per_image() + p;
        for (int64_t y = first; y < last; ++y) {
          const T* factors = Recalibrated ? recalibration_rows->read(plane, y, recalibration_buffer.data()) : nullptr;
          scales.row(plane, y, AttentionOp<Recalibrated, T, S>{weights_of(y), factors, out_rows.start(plane, y)});
        }
      }
    });
  });
}

// Calls work(n, y, x) for every pixel of `map`, in parallel.
template <class Work>
void for_each_pixel(const Tensor& map, const Work& work) {
  const int64_t height = map.size(2), width = map.size(3);
  for_each_part(map.size(0) * height, map.size(1) * width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t x = 0; x < width; ++x) work(r / height, r % height, x);
    }
  });
}

Tensor scale_softmax_cpu(const Tensor& logits) {
  check_map("scale_softmax", "logits", logits);
  Tensor weights = empty_same(logits);
  dispatch("scale_softmax", logits, [&](auto type) {
    using T = typename decltype(type)::type;
    if (logits.size(1) > kMaxScales) {
      for_each_pixel(weights, [in = map_of<const T>(logits), out = map_of<T>(weights)](auto... at) {
        softmax_pixel(in, out, at...);
      });
      return;
    }
    dispatch_scales(logits.size(1), [&](auto count) {
      softmax_rows<T, decltype(count)::value>(map_of<const T>(logits), map_of<T>(weights));
    });
  });
  return weights;
}

Tensor scale_softmax_backward_cpu(const Tensor& grad, const Tensor& weights) {
  check_softmax_backward("scale_softmax_backward", grad, weights);
  Tensor grad_logits = empty_same(weights);
  dispatch("scale_softmax_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    if (grad.size(1) > kMaxScales) {
      for_each_pixel(grad_logits, [g = map_of<const T>(grad), w = map_of<const T>(weights),
                                   out = map_of<T>(grad_logits)](auto... at) {
        softmax_pixel_backward(g, w, out, at...);
      });
      return;
    }
    dispatch_scales(grad.size(1), [&](auto count) {
      using Channels = ScaleChannels<const T, decltype(count)::value>;
      softmax_backward_rows(Channels(map_of<const T>(grad)), Channels(map_of<const T>(weights)),
                            map_of<T>(grad_logits));
    });
  });
  return grad_logits;
}

std::tuple<Tensor, Tensor> scale_merge_cpu(const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                                           int64_t width, const std::optional<Tensor>& recalibration) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  check_recalibration("scale_merge", recalibration, merged);
  dispatch_merge("scale_merge", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scale_set(scores, height, width);
    const Map<const T> logit_map = map_of<const T>(logits);
    const Resize weight_resize(logit_map.h, logit_map.w, height, width);
    std::optional<Tensor> coarse;
    std::optional<Map<const Acc>> coarse_map;
    if (!weight_resize.copies) {
      coarse = empty_planes<Acc>(logits);
      softmax_rows<T, S>(logit_map, map_of<Acc>(*coarse));
      coarse_map = map_of<const Acc>(*coarse);
    }
    const Merged<T> to{map_of<T>(merged), map_of<T>(weights), is_channels_last(merged)};
    const auto weight_rows_of = [&] { return WeightRows<T, S>(logit_map, coarse_map, weight_resize); };
    if (recalibration) merge_rows<true>(scale_set, weight_rows_of, recalibration, to);
    else merge_rows<false>(scale_set, weight_rows_of, recalibration, to);
  });
  return {merged, weights};
}

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

// Fills the gradient of the recalibration, and in `out` that of the weights on the merged grid or, ThroughSoftmax, that
// of logits on the same grid.
template <bool ThroughSoftmax, bool Recalibrated, class T, int S, class Out>
void weight_grad_rows(const BackwardInputs& m, const ScaleSet<T, S>& scale_set, const Map<Out>& out,
                      const std::vector<Tensor>& recalibration_grad) {
  using Acc = acc_t<T>;
  const bool interleaved = is_channels_last(m.grad);
  const int64_t width = m.grad.size(3);
  const ScaleChannels<const T, S> weight_rows(map_of<const T>(m.weights));
  const ScaleChannels<Out, S> out_rows(out);
  std::optional<Rows<T>> recalibration_grad_rows;
  if constexpr (Recalibrated) recalibration_grad_rows.emplace(map_of<T>(recalibration_grad[0]), interleaved);
  std::optional<ScaleChannels<const T, S>> grad_weight_rows;
  if (m.grad_weights) grad_weight_rows.emplace(map_of<const T>(*m.grad_weights));
  for_each_part(out.n * out.h, m.grad.size(1) * width, [&](int64_t begin, int64_t end) {
    ScaleRows<T, S> scales(scale_set, interleaved);
    GradRows<T> grads(m.grad, m.recalibration, interleaved);
    const int64_t most = std::min(band_rows(2 * S * width), end - begin);
    std::vector<Acc> band(most * S * width), weight_band(most * S * width);
    std::vector<T> buffer(Recalibrated ? recalibration_grad_rows->values() : 0);
    for_each_band(begin, end, out.h, most, [&](int64_t n, int64_t first, int64_t last) {
      const auto sums_of = [&](int64_t y) { return RowSet<Acc, S>(&band[(y - first) * S * width], width); };
      const auto weights_of = [&](int64_t y) { return RowSet<Acc, S>(&weight_band[(y - first) * S * width], width); };
      if (ThroughSoftmax || Recalibrated) {
        for (int64_t y = first; y < last; ++y) weight_rows.load(n, y, weights_of(y));
      }
      if (grad_weight_rows) {
        for (int64_t y = first; y < last; ++y) grad_weight_rows->load(n, y, sums_of(y));
      } else {
        std::fill(band.begin(), band.end(), Acc(0));
      }
      for (int64_t p = 0; p < grads.planes_per_image(); ++p) {
        const int64_t plane = n * grads.planes_per_image() + p;
        for (int64_t y = first; y < last; ++y) {
          T* recalibration_row = Recalibrated ? recalibration_grad_rows->in_place(plane, y, buffer.data()) : nullptr;
          const SumGrad<Recalibrated, T, S> grad{grads.grad(plane, y), grads.recalibration(plane, y),
                                                 recalibration_row, weights_of(y)};
          add_products(scales, plane, y, grad, sums_of(y));
          if (Recalibrated) recalibration_grad_rows->store(plane, y, recalibration_row);
        }
      }
      for (int64_t y = first; y < last; ++y) {
        if constexpr (ThroughSoftmax) softmax_backward_row(sums_of(y), weights_of(y), width);
        out_rows.store(n, y, sums_of(y));
      }
    });
  });
}

// Fills `out` with the gradient of logits on a grid of their own, from that of the weights on the merged grid.
template <class T, int S>
void logit_grad_rows(const BackwardInputs& m, const Tensor& weight_grad, const Map<T>& out) {
  using Acc = acc_t<T>;
  const ScaleChannels<const T, S> logit_rows(map_of<const T>(m.logits));
  const Rows<const Acc> weight_grad_rows(map_of<const Acc>(weight_grad), false);
  const ScaleChannels<T, S> out_rows(out);
  const Resize resize(out.h, out.w, weight_grad.size(2), weight_grad.size(3));
  for_each_part(out.n * out.h, S * weight_grad.size(3), [&](int64_t begin, int64_t end) {
    GatheredRows<Acc> gathered(resize, 1);
    std::vector<Acc> weight_buffer(S * out.w), grad_buffer(S * out.w);
    const RowSet<Acc, S> weights(weight_buffer.data(), out.w), grads(grad_buffer.data(), out.w);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / out.h, i = r % out.h;
      logit_rows.load(n, i, weights);
      softmax_row(weights, out.w);
      for (int s = 0; s < S; ++s) {
        const auto value_of = [&](int64_t y) {
          return ScaledValue<Acc>{weight_grad_rows.start(n * S + s, y), 1};
        };
        gathered.row(i, value_of, grads.row[s]);
      }
      softmax_backward_row(grads, weights, out.w);
      out_rows.store(n, i, grads);
    }
  });
}

// Fills all gradients of a merge.
template <bool Recalibrated, class T, int S>
void merge_grad_rows(const BackwardInputs& m, const ScaleSet<T, S>& scale_set, const std::vector<Tensor>& grad_scores,
                     const Tensor& grad_logits, const std::vector<Tensor>& grad_recalibration) {
  using Acc = acc_t<T>;
  const int64_t height = m.grad.size(2), width = m.grad.size(3);
  if (m.logits.size(2) == height && m.logits.size(3) == width) {
    weight_grad_rows<true, Recalibrated>(m, scale_set, map_of<T>(grad_logits), grad_recalibration);
  } else {
    const Tensor weight_grad = empty_planes<Acc>(m.weights);
    weight_grad_rows<false, Recalibrated>(m, scale_set, map_of<Acc>(weight_grad), grad_recalibration);
    logit_grad_rows<T, S>(m, weight_grad, map_of<T>(grad_logits));
  }
  const Rows<const T> weight_rows(map_of<const T>(m.weights), false);
  for (int s = 0; s < S; ++s) {
    const Map<T> out = map_of<T>(grad_scores[s]);
    gather_rows(out, scale_set.resize[s], [&, s] {
      return [&, s, grads = GradRows<T>(m.grad, m.recalibration, out.channels_last),
              buffer = std::vector<T>(width)](int64_t plane, int64_t y) mutable {
        const T* weight = weight_rows.read(plane / grads.planes_per_image() * S + s, y, buffer.data());
        return WeightedValue<Recalibrated, T>{weight, grads.grad(plane, y), grads.recalibration(plane, y)};
      };
    });
  }
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
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scale_set(scores, grad.size(2), grad.size(3));
    if (recalibration) merge_grad_rows<true>(merge, scale_set, grad_scores, grad_logits, grad_recalibration);
    else merge_grad_rows<false>(merge, scale_set, grad_scores, grad_logits, grad_recalibration);
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("scale_softmax", TORCH_BOX(&scale_softmax_cpu));
  m.impl("scale_softmax_backward", TORCH_BOX(&scale_softmax_backward_cpu));
  m.impl("scale_merge", TORCH_BOX(&scale_merge_cpu));
  m.impl("scale_merge_backward", TORCH_BOX(&scale_merge_backward_cpu));
}
