#include <torch/csrc/stable/library.h>

#include "../interp/rows.h"
#include "kernels.h"

namespace {

using namespace a2s;

// Rows of merged maps are dealt to threads in bands, within which a pixel's weights serve every channel.
constexpr int64_t kBandRows = 16;

// Calls work(n, first row, end row) for every band of every image, in parallel.
template <class Work>
void for_each_band(int64_t images, int64_t height, const Work& work) {
  const int64_t bands = (height + kBandRows - 1) / kBandRows;
  torch::stable::parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b % bands * kBandRows;
      work(b / bands, first, std::min(first + kBandRows, height));
    }
  });
}

// The resized rows of S score maps.
template <class T, int S>
class ScaleRows {
 public:
  using Acc = acc_t<T>;

  ScaleRows(const ScaleSet<T, S>& scales, bool lanes_are_channels) {
    for (int s = 0; s < S; ++s) rows_.emplace_back(scales.map[s], scales.resize[s], lanes_are_channels);
  }
  const Acc* row(int s, int64_t plane, int64_t y) { return rows_[s].row(plane, y); }

 private:
  std::vector<ResizedRows<T>> rows_;
};

// sum[i] += weight[pixel of i] * value[i]
template <class Acc>
void add_weighted(int64_t width, int64_t lanes, const Acc* weight, const Acc* value, Acc* sum) {
  if (lanes == 1) {
    for (int64_t x = 0; x < width; ++x) sum[x] += weight[x] * value[x];
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t l = 0; l < lanes; ++l) sum[x * lanes + l] += weight[x] * value[x * lanes + l];
  }
}

// sum[pixel of i] += a[i] * b[i]
template <class Acc>
void add_products(int64_t width, int64_t lanes, const Acc* a, const Acc* b, Acc* sum) {
  if (lanes == 1) {
    for (int64_t x = 0; x < width; ++x) sum[x] += a[x] * b[x];
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    Acc pixel = 0;
    for (int64_t l = 0; l < lanes; ++l) pixel += a[x * lanes + l] * b[x * lanes + l];
    sum[x] += pixel;
  }
}

std::tuple<Tensor, Tensor> scale_merge_cpu(const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                                           int64_t width) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  dispatch_merge("scale_merge", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scales(scores, height, width);
    const Map<const T> logit_map = map_of<const T>(logits);
    const Resize weight_resize(logit_map.h, logit_map.w, height, width);
    const Map<T> out = map_of<T>(merged), weight_map = map_of<T>(weights);
    const Rows<T> rows(out, out.channels_last);
    for_each_band(out.n, height, [&](int64_t n, int64_t first, int64_t end) {
      std::vector<Acc> band((end - first) * S * width), sum(rows.values());
      const auto weight_row = [&](int64_t y, int s) { return &band[((y - first) * S + s) * width]; };
      for (int64_t y = first; y < end; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          Acc w[S];
          weights_at(logit_map, weight_resize, n, y, x, w);
          for (int s = 0; s < S; ++s) {
            weight_row(y, s)[x] = w[s];
            weight_map.at(n, s, y, x) = static_cast<T>(w[s]);
          }
        }
      }
      ScaleRows<T, S> resized(scales, out.channels_last);
      for (int64_t p = 0; p < rows.planes_per_image(); ++p) {
        const int64_t plane = n * rows.planes_per_image() + p;
        for (int64_t y = first; y < end; ++y) {
          std::fill(sum.begin(), sum.end(), Acc(0));
          for (int s = 0; s < S; ++s) {
            add_weighted(width, rows.lanes(), weight_row(y, s), resized.row(s, plane, y), sum.data());
          }
          rows.store(plane, y, sum.data());
        }
      }
    });
  });
  return {merged, weights};
}

// The gradient of the weights on the merged grid; ThroughSoftmax as in WeightGrad.
template <bool ThroughSoftmax, class T, int S, class Out>
void weight_grad_rows(const ScaleSet<T, S>& scales, const Map<const T>& grad, const std::optional<Tensor>& grad_weights,
                      const Map<const T>& weights, const Map<Out>& out) {
  using Acc = acc_t<T>;
  const Rows<const T> rows(grad, grad.channels_last);
  for_each_band(grad.n, grad.h, [&](int64_t n, int64_t first, int64_t end) {
    std::vector<Acc> band((end - first) * S * grad.w, Acc(0)), grad_row(rows.values());
    const auto sum_row = [&](int64_t y, int s) { return &band[((y - first) * S + s) * grad.w]; };
    ScaleRows<T, S> resized(scales, grad.channels_last);
    for (int64_t p = 0; p < rows.planes_per_image(); ++p) {
      const int64_t plane = n * rows.planes_per_image() + p;
      for (int64_t y = first; y < end; ++y) {
        rows.load(plane, y, grad_row.data());
        for (int s = 0; s < S; ++s) {
          add_products(grad.w, rows.lanes(), grad_row.data(), resized.row(s, plane, y), sum_row(y, s));
        }
      }
    }
    for (int64_t y = first; y < end; ++y) {
      for (int64_t x = 0; x < grad.w; ++x) {
        Acc g[S], w[S];
        for (int s = 0; s < S; ++s) {
          g[s] = sum_row(y, s)[x];
          if (grad_weights) g[s] += static_cast<Acc>(map_of<const T>(*grad_weights).at(n, s, y, x));
          w[s] = static_cast<Acc>(weights.at(n, s, y, x));
        }
        if constexpr (ThroughSoftmax) softmax_backward(g, w);
        for (int s = 0; s < S; ++s) out.at(n, s, y, x) = static_cast<Out>(g[s]);
      }
    }
  });
}

std::tuple<std::vector<Tensor>, Tensor> scale_merge_backward_cpu(const Tensor& grad,
                                                                 const std::optional<Tensor>& grad_weights,
                                                                 const std::vector<Tensor>& scores,
                                                                 const Tensor& logits, const Tensor& weights) {
  check_merge_backward("scale_merge_backward", grad, grad_weights, scores, logits, weights);
  const int64_t height = grad.size(2), width = grad.size(3);
  const Resize weight_resize(logits.size(2), logits.size(3), height, width);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  Tensor grad_logits = empty_same(logits);
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scales(scores, height, width);
    const Map<const T> grad_map = map_of<const T>(grad), weight_map = map_of<const T>(weights);
    if (weight_resize.copies) {
      weight_grad_rows<true>(scales, grad_map, grad_weights, weight_map, map_of<T>(grad_logits));
    } else {
      const Tensor weight_grad = empty_weight_grad<Acc>(weights);
      weight_grad_rows<false>(scales, grad_map, grad_weights, weight_map, map_of<Acc>(weight_grad));
      ParallelLaunch::run(logits, logits.size(0) * logits.size(2) * logits.size(3),
                          LogitGrad<T, S>{map_of<const T>(logits), map_of<const Acc>(weight_grad), weight_resize,
                                          map_of<T>(grad_logits)});
    }
    for (int s = 0; s < S; ++s) {
      const Map<T> out = map_of<T>(grad_scores[s]);
      const Rows<const T> rows(grad_map, out.channels_last);
      gather_rows(out, scales.resize[s], [&] {
        return [&, s](int64_t plane, int64_t y, Acc* row) {
          rows.load(plane, y, row);
          const int64_t n = plane / rows.planes_per_image();
          for (int64_t x = 0; x < width; ++x) {
            const Acc weight = static_cast<Acc>(weight_map.at(n, s, y, x));
            for (int64_t l = 0; l < rows.lanes(); ++l) row[x * rows.lanes() + l] *= weight;
          }
        };
      });
    }
  });
  return {grad_scores, grad_logits};
}

Tensor scale_average_cpu(const std::vector<Tensor>& scores, int64_t height, int64_t width, double factor) {
  Tensor merged = empty_merged("scale_average", scores, height, width);
  dispatch_merge("scale_average", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scales(scores, height, width);
    const Map<T> out = map_of<T>(merged);
    const Rows<T> rows(out, out.channels_last);
    const Acc scale = static_cast<float>(factor);
    torch::stable::parallel_for(0, rows.planes() * height, row_grain(rows.values()), [&](int64_t begin, int64_t end) {
      ScaleRows<T, S> resized(scales, out.channels_last);
      std::vector<Acc> sum(rows.values());
      for (int64_t r = begin; r < end; ++r) {
        const int64_t plane = r / height, y = r % height;
        const Acc* value = resized.row(0, plane, y);
        std::copy(value, value + sum.size(), sum.begin());
        for (int s = 1; s < S; ++s) {
          value = resized.row(s, plane, y);
          for (size_t i = 0; i < sum.size(); ++i) sum[i] += value[i];
        }
        for (Acc& v : sum) v *= scale;
        rows.store(plane, y, sum.data());
      }
    });
  });
  return merged;
}

std::tuple<Tensor, Tensor> scale_max_cpu(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  Tensor merged = empty_merged("scale_max", scores, height, width);
  Tensor winner = empty_winner(merged);
  dispatch_merge("scale_max", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    constexpr int S = decltype(count)::value;
    const ScaleSet<T, S> scales(scores, height, width);
    const Map<T> out = map_of<T>(merged);
    const Rows<T> rows(out, out.channels_last);
    const Rows<uint8_t> winner_rows(map_of<uint8_t>(winner), out.channels_last);
    torch::stable::parallel_for(0, rows.planes() * height, row_grain(rows.values()), [&](int64_t begin, int64_t end) {
      ScaleRows<T, S> resized(scales, out.channels_last);
      std::vector<Acc> best(rows.values());
      std::vector<float> best_s(rows.values());
      for (int64_t r = begin; r < end; ++r) {
        const int64_t plane = r / height, y = r % height;
        const Acc* value = resized.row(0, plane, y);
        std::copy(value, value + best.size(), best.begin());
        std::fill(best_s.begin(), best_s.end(), 0.f);
        for (int s = 1; s < S; ++s) {
          value = resized.row(s, plane, y);
          for (size_t i = 0; i < best.size(); ++i) {
            const bool takes = takes_over(s, value[i], best[i]);
            best[i] = takes ? value[i] : best[i];
            best_s[i] = takes ? static_cast<float>(s) : best_s[i];
          }
        }
        rows.store(plane, y, best.data());
        winner_rows.store(plane, y, best_s.data());
      }
    });
  });
  return {merged, winner};
}

std::vector<Tensor> scale_max_backward_cpu(const Tensor& grad, const Tensor& winner,
                                           const std::vector<Tensor>& scores) {
  check_max_backward("scale_max_backward", grad, winner, scores);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  dispatch("scale_max_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    for (size_t s = 0; s < scores.size(); ++s) {
      const Map<T> out = map_of<T>(grad_scores[s]);
      const Rows<const T> rows(map_of<const T>(grad), out.channels_last);
      const Rows<const uint8_t> winner_rows(map_of<const uint8_t>(winner), out.channels_last);
      gather_rows(out, Resize(out.h, out.w, grad.size(2), grad.size(3)), [&] {
        return [&, won = std::vector<float>(rows.values())](int64_t plane, int64_t y, acc_t<T>* row) mutable {
          rows.load(plane, y, row);
          winner_rows.load(plane, y, won.data());
          for (size_t i = 0; i < won.size(); ++i) row[i] = won[i] == static_cast<float>(s) ? row[i] : acc_t<T>(0);
        };
      });
    }
  });
  return grad_scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("scale_softmax", TORCH_BOX(&a2s::scale_softmax<a2s::ParallelLaunch>));
  m.impl("scale_softmax_backward", TORCH_BOX(&a2s::scale_softmax_backward<a2s::ParallelLaunch>));
  m.impl("scale_merge", TORCH_BOX(&scale_merge_cpu));
  m.impl("scale_merge_backward", TORCH_BOX(&scale_merge_backward_cpu));
  m.impl("scale_average", TORCH_BOX(&scale_average_cpu));
  m.impl("scale_max", TORCH_BOX(&scale_max_cpu));
  m.impl("scale_max_backward", TORCH_BOX(&scale_max_backward_cpu));
}
