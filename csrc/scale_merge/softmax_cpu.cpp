// The CPU loops of the softmax over scales, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "softmax_rows.h"

namespace a2s {
namespace {

template <size_t S, class T, class Acc>
A2S_CLONES void split(const T* from, const RowSet<Acc> to) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < to.width; ++x) {
    for (size_t s = 0; s < S; ++s) to.row(s)[x] = static_cast<Acc>(from[x * S + s]);
  }
}

template <size_t S, class T, class Acc>
A2S_CLONES void join(const RowSet<Acc> from, T* to) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < from.width; ++x) {
    for (size_t s = 0; s < S; ++s) to[x * S + s] = static_cast<T>(from.row(s)[x]);
  }
}

template <size_t S, class Acc>
A2S_CLONES void softmax_pixels(const RowSet<Acc> rows) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < rows.width; ++x) {
    Acc v[S];
    rows.at(x, v);
    softmax(v);
    rows.set(x, v);
  }
}

template <size_t S, class Acc>
A2S_CLONES void softmax_backward_pixels(const RowSet<Acc> grads, const RowSet<Acc> weights) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < grads.width; ++x) {
    Acc g[S], w[S];
    grads.at(x, g);
    weights.at(x, w);
    softmax_backward(g, w);
    grads.set(x, g);
  }
}

}  // namespace

template <class T, class Acc>
void split_pixels(const T* from, const RowSet<Acc>& to) {
  dispatch_scales(to.count, [&](auto count) { split<decltype(count)::value>(from, to); });
}

template <class T, class Acc>
void join_pixels(const RowSet<Acc>& from, T* to) {
  dispatch_scales(from.count, [&](auto count) { join<decltype(count)::value>(from, to); });
}

template <class Acc>
void softmax_row(const RowSet<Acc>& rows) {
  dispatch_scales(rows.count, [&](auto count) { softmax_pixels<decltype(count)::value>(rows); });
}

template <class Acc>
void softmax_backward_row(const RowSet<Acc>& grads, const RowSet<Acc>& weights) {
  dispatch_scales(grads.count, [&](auto count) { softmax_backward_pixels<decltype(count)::value>(grads, weights); });
}

template void split_pixels(const float*, const RowSet<float>&);
template void split_pixels(const double*, const RowSet<double>&);
template void split_pixels(const BFloat16*, const RowSet<float>&);
template void join_pixels(const RowSet<float>&, float*);
template void join_pixels(const RowSet<double>&, double*);
template void join_pixels(const RowSet<float>&, BFloat16*);
template void softmax_row(const RowSet<float>&);
template void softmax_row(const RowSet<double>&);
template void softmax_backward_row(const RowSet<float>&, const RowSet<float>&);
template void softmax_backward_row(const RowSet<double>&, const RowSet<double>&);

}  // namespace a2s

namespace {

using namespace a2s;

// Fills `out` with the gradient of the logits whose softmax is `weights`.
template <class T>
void softmax_backward_rows(const Map<const T>& grad, const Map<const T>& weight, const Map<T>& out) {
  using Acc = acc_t<T>;
  const ScaleChannels<const T> grads(grad), weights(weight);
  const ScaleChannels<T> out_rows(out);
  for_each_part(out.n * out.h, out.c * out.w, [&](int64_t begin, int64_t end) {
    std::vector<Acc> grad_buffer(out.c * out.w), weight_buffer(out.c * out.w);
    const RowSet<Acc> grad_row{grad_buffer.data(), out.c, out.w}, weight_row{weight_buffer.data(), out.c, out.w};
    for (int64_t r = begin; r < end; ++r) {
      grads.load(r / out.h, r % out.h, grad_row);
      weights.load(r / out.h, r % out.h, weight_row);
      softmax_backward_row(grad_row, weight_row);
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
    softmax_rows(map_of<const T>(logits), map_of<T>(weights));
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
    softmax_backward_rows(map_of<const T>(grad), map_of<const T>(weights), map_of<T>(grad_logits));
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("scale_softmax", TORCH_BOX(&scale_softmax_cpu));
  m.impl("scale_softmax_backward", TORCH_BOX(&scale_softmax_backward_cpu));
}
