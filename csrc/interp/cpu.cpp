// The CPU loops of interp, its adjoint and interp_concat, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "../rows/gather_rows.h"
#include "../rows/scale_rows.h"
#include "operators.h"

namespace {

using namespace a2s;

// Prefetch distance, in bytes, ahead of the store. Saves up to a third of the time on large maps of many channels.
constexpr int64_t kStorePrefetchBytes = 4096;

// The op of resize_row that stores the values. Pixels are `gap` values apart in `out`.
template <class T>
struct Store {
  T* out;
  int64_t gap;

  template <class W, size_t>
  auto pixel(int64_t x) const {
    return [to = out + x * gap](int64_t i, const auto& v) {
      __builtin_prefetch(to + i + kStorePrefetchBytes / sizeof(T), 1);
      store_values(to + i, v[0]);
    };
  }
};

// Resizes x into y. In channels_last the channels of y are adjacent.
void resize_rows(const Tensor& x, const Tensor& y) {
  dispatch_cpu("interp", x, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> out = map_of<T>(y);
    const std::vector<Tensor> maps{x};
    const bool interleaved = takes_interleaved(out);
    const Rows<T> rows(out, interleaved);
    for_each_part(rows.planes() * out.h, rows.values(), [&](int64_t begin, int64_t end) {
      ScaleRows<T> resized(maps, out.h, out.w, interleaved);
      std::vector<T> buffer(interleaved ? 0 : out.w);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t plane = r / out.h, i = r % out.h;
        if (interleaved) {
          resized.template row<1>(plane, i, Store<T>{rows.start(plane, i), rows.gap()});
        } else {
          T* row = rows.in_place(plane, i, buffer.data());
          resized.template row<1>(plane, i, Store<T>{row, 0});
          rows.store(plane, i, row);
        }
      }
    });
  });
}

}  // namespace

void a2s::resize_into(const std::vector<Tensor>& x, const std::vector<Tensor>& y) {
  for (size_t i = 0; i < x.size(); ++i) resize_rows(x[i], y[i]);
}

void a2s::interp_adjoint(const std::vector<Tensor>& grads, const std::vector<Tensor>& grads_in, double scale) {
  dispatch_cpu("interp_backward", grads[0], [&](auto type) {
    using T = typename decltype(type)::type;
    for (size_t i = 0; i < grads.size(); ++i) {
      const Map<const T> grad = map_of<const T>(grads[i]);
      const Map<T> out = map_of<T>(grads_in[i]);
      const Rows<const T> rows(grad, takes_interleaved(out));
      gather_rows(out, Resize(out.h, out.w, grad.h, grad.w), [&] {
        return [&, buffer = std::vector<T>(rows.values())](int64_t plane, int64_t y) mutable {
          return ScaledValue<T>{rows.read(plane, y, buffer.data()), static_cast<float>(scale)};
        };
      });
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("interp", TORCH_BOX(&interp));
  m.impl("interp_backward", TORCH_BOX(&interp_backward));
  m.impl("interp_concat", TORCH_BOX(&interp_concat));
  m.impl("interp_concat_backward", TORCH_BOX(&interp_concat_backward));
}
