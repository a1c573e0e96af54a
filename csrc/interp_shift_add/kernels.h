// GPU kernels of interp_shift_add and its adjoint, and the host code that launches them.
#pragma once

#include "../interp/gather.h"
#include "../interp/resize.h"
#include "interp_shift_add.h"

namespace a2s {

template <class T>
struct ShiftAddArguments {
  Map<const T> planes, base;
  Map<T> out;
  Resize resize;
  int64_t tap_stride;  // between the planes of adjacent taps, in values
  Tiling tiling;
  Staging staging;
};

constexpr int kShiftAddRows = 8;

// A thread goes down a column. The planes of each tap sample rows and columns of their own, next to the thread's; for
// each the two rows around the sample are held, already resized along x.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4) shift_add(const __grid_constant__ ShiftAddArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ SourceRows<Acc> rows[kShiftAddRows + kTaps - 1];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* staged = reinterpret_cast<T*>(shared);
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int first_x = kInterleaved ? tile.o : tile.i, first_c = kInterleaved ? tile.i : tile.o;
  const auto height = static_cast<int>(a.out.h), width = static_cast<int>(a.out.w);
  if (threadIdx.x < kShiftAddRows + kTaps - 1) {
    const int y = tile.y + static_cast<int>(threadIdx.x) - 1;
    rows[threadIdx.x] = source_rows<T>(a.planes, a.resize.y, min(max(y, 0), height - 1), y <= 0);
  }
  __syncthreads();
  T* const out = a.out.data + tile.n * a.out.stride_n + tile.y * a.out.stride_h + first_c * a.out.stride_c +
                 first_x * a.out.stride_w;
  const int start = Staging::start(out);
  const int columns = tile.outer * a.tiling.inner;
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    int i = column;
    const int o = a.tiling.columns_inner.split(i);
    if (i >= tile.inner) continue;
    const int x = first_x + (kInterleaved ? o : i), c = first_c + (kInterleaved ? i : o);
    uint32_t left[kTaps], right[kTaps];
    Acc lambda[kTaps], upper[kTaps][kTaps], lower[kTaps][kTaps];
    bool holds[kTaps] = {};
#pragma unroll
    for (int d = 0; d < kTaps; ++d) {
      const Tap tap = tap_of(a.resize.x, min(max(x + d - 1, 0), width - 1));
      left[d] = offset_in(a.planes, 0, tap.low);
      right[d] = offset_in(a.planes, 0, tap.high);
      lambda[d] = tap.lambda;
    }
    const T* planes[kTaps];  // of the first tap in each row of taps
#pragma unroll
    for (int dy = 0; dy < kTaps; ++dy) {
      planes[dy] = a.planes.data + tile.n * a.planes.stride_n + c * a.planes.stride_c + kTaps * dy * a.tap_stride;
    }
    const T* from = row_of(a.base, tile.n, c, x, tile.y);
    T* to = staged + start + i + o * a.staging.outer_pitch;
#pragma unroll 1
    for (int r = 0; r < tile.rows; ++r) {
      Acc sum = static_cast<Acc>(*from);
      from += a.base.stride_h;
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        const int y = tile.y + r + dy - 1;
        if (y < 0 || y >= height) continue;
        const SourceRows<Acc>& source = rows[r + dy];
        const auto read = [&](int64_t row, Acc (&v)[kTaps]) {
          const T* at = reinterpret_cast<const T*>(reinterpret_cast<const char*>(planes[dy]) + row);
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx, at += a.tap_stride) {
            v[dx] = lerp(static_cast<Acc>(*advanced(at, left[dx])), static_cast<Acc>(*advanced(at, right[dx])), lambda[dx]);
          }
        };
        if (source.step != 0 || !holds[dy]) {
          if (source.step == 1 && holds[dy]) {
#pragma unroll
            for (int dx = 0; dx < kTaps; ++dx) upper[dy][dx] = lower[dy][dx];
          } else {
            read(source.low, upper[dy]);
          }
          read(source.high, lower[dy]);
          holds[dy] = true;
        }
        const auto between = [&](int dx) { return source.above * upper[dy][dx] + source.below * lower[dy][dx]; };
        const Acc left_sum = between(0), right_sum = between(2);
        sum += between(1);
        if (x > 0) sum += left_sum;
        if (x < width - 1) sum += right_sum;
      }
      *to = static_cast<T>(sum);
      to += a.staging.row_pitch;
    }
  }
  __syncthreads();
  a.staging.store(staged, out, tile.rows, tile.outer, tile.inner);
}

inline Tensor interp_shift_add(const Tensor& planes, const Tensor& base) {
  Tensor y = empty_shift_add(planes, base);
  dispatch("interp_shift_add", planes, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> out = map_of<T>(y);
    dispatch_layout(out, [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      const Tensor from = addressable(planes, false);
      ShiftAddArguments<T> a{};
      a.planes = map_of<const T>(from);
      a.base = map_of<const T>(base);
      a.out = out;
      a.tap_stride = out.c * a.planes.stride_c;
      a.resize = Resize(a.planes.h, a.planes.w, out.h, out.w);
      const int64_t all_outer = kInterleaved ? out.w : out.c, all_inner = kInterleaved ? out.c : out.w;
      const int64_t inner = balanced(all_inner, 2 * kBlockThreads);
      int64_t outer = std::max<int64_t>(1, 2 * kBlockThreads / inner), rows = kShiftAddRows;
      const auto cut = [&] { a.tiling = Tiling(out.n, out.h, all_outer, all_inner, rows, outer, inner); };
      cut();
      for (; a.tiling.blocks() < kBlocksWanted && outer > 1 && outer * inner > kBlockThreads; cut()) --outer;
      for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
      a.staging = Staging(out, a.tiling.rows, a.tiling.outer, a.tiling.inner, kInterleaved);
      launch(planes, a.tiling.blocks(), kBlockThreads, a.staging.template bytes<T>(), shift_add<T, kInterleaved>, a);
    });
  });
  return y;
}

// The gradient, shifted by `shift` rows and padded with zeros: outputs in row y pass back row y - shift.
template <class T>
struct ShiftedGrad {
  Map<const T> grad;
  int shift;

  struct Rows {
    const T* grad;
    int y;
  };
  struct Column {
    uint32_t offset;
    bool inside;
  };
  int64_t outer_limit(bool interleaved, double step) const { return a2s::outer_limit(grad, interleaved, step); }
  __device__ Rows rows(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y - shift), y - shift};
  }
  __device__ void next(Rows& rows) const {
    rows.grad += grad.stride_h;
    ++rows.y;
  }
  __device__ Column column(int c, int first_x, int x) const {
    return {offset_in(grad, c, x), static_cast<uint32_t>(first_x + x) < static_cast<uint32_t>(grad.w)};
  }
  template <int V>
  __device__ void load(const Rows& rows, const Column& column, acc_t<T> (&v)[V]) const {
    if (column.inside && static_cast<uint32_t>(rows.y) < static_cast<uint32_t>(grad.h)) {
      load_values<T, V>(advanced(rows.grad, column.offset), v);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k) v[k] = 0;
    }
  }
};

// Each row of taps gathers the gradient shifted by its distance along y, at the three shifts along x.
inline Tensor interp_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kPack = kPackBytes / sizeof(T);
    const Map<T> to = map_of<T>(grad_planes);
    const Tensor source = addressable(grad, is_interleaved(to));
    const Map<const T> from = map_of<const T>(source);
    std::vector<Tensor> rows_of_taps;
    for (int dy = 0; dy < kTaps; ++dy) {
      rows_of_taps.push_back(torch::stable::narrow(grad_planes, 1, dy * kTaps * from.c, kTaps * from.c));
    }
    const auto value_of = [&](int dy) { return ShiftedGrad<T>{from, dy - 1}; };
    if (packs<kPack>(from) && packs<kPack>(to) && from.c % kPack == 0) {
      launch_gather<T, kPack, true, kTaps>(grad, rows_of_taps, from.h, from.w, 1, value_of);
    } else {
      dispatch_layout(to, [&](auto interleaved) {
        launch_gather<T, 1, decltype(interleaved)::value, kTaps>(grad, rows_of_taps, from.h, from.w, 1, value_of);
      });
    }
  });
  return grad_planes;
}

}  // namespace a2s
