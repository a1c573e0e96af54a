// The CPU loops of the softmax over scales, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "merge_rows.h"

namespace {

using namespace a2s;

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
  dispatch_cpu("scale_softmax", logits, [&](auto type) {
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
  dispatch_cpu("scale_softmax_backward", grad, [&](auto type) {
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("scale_softmax", TORCH_BOX(&scale_softmax_cpu));
  m.impl("scale_softmax_backward", TORCH_BOX(&scale_softmax_backward_cpu));
}
