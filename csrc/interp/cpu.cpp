#include <torch/csrc/stable/library.h>

#include "kernels.h"
#include "rows.h"

namespace {

using namespace a2s;

void interp_rows(const Tensor& x, const Tensor& y) {
  dispatch("interp", x, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<const T> in = map_of<const T>(x);
    const Map<T> out = map_of<T>(y);
    const Resize resize(in.h, in.w, out.h, out.w);
    const Rows<T> rows(out, out.channels_last);
    torch::stable::parallel_for(0, rows.planes() * out.h, row_grain(rows.values()), [&](int64_t begin, int64_t end) {
      ResizedRows<T> resized(in, resize, out.channels_last);
      for (int64_t r = begin; r < end; ++r) rows.store(r / out.h, r % out.h, resized.row(r / out.h, r % out.h));
    });
  });
}

Tensor interp_cpu(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  interp_rows(x, y);
  return y;
}

Tensor interp_backward_cpu(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_x = empty_resized("interp_backward", "grad", grad, height, width);
  dispatch("interp_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> grad_in = map_of<T>(grad_x);
    const Rows<const T> rows(map_of<const T>(grad), grad_in.channels_last);
    gather_rows(grad_in, Resize(height, width, grad.size(2), grad.size(3)), [&] {
      return [&](int64_t plane, int64_t y, acc_t<T>* row) { rows.load(plane, y, row); };
    });
  });
  return grad_x;
}

Tensor interp_concat_cpu(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  Tensor y = empty_concat(features, height, width);
  for_each_slice(features, y, interp_rows);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("interp", TORCH_BOX(&interp_cpu));
  m.impl("interp_backward", TORCH_BOX(&interp_backward_cpu));
  m.impl("interp_concat", TORCH_BOX(&interp_concat_cpu));
}
