// GPU kernels of interp_shift_add and its adjoint, and the host code that launches them.
#pragma once

#include "../interp/resize.h"
#include "interp_shift_add.h"

namespace a2s {

template <class T>
struct ShiftAddArguments {
  Map<const T> planes, base;
  Map<T> out;
  Resize resize;
  Tiling tiling;
  Staging staging;
};

constexpr int kShiftAddRows = 8;

// A thread goes down a column. The planes of each tap sample rows and columns of their own, next to the thread's; for
// each the two rows around the sample are held, already resized along x.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4) shift_add(const __grid_constant__ ShiftAddArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ Tap rows[kShiftAddRows + kTaps - 1];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* staged = reinterpret_cast<T*>(shared);
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int first_x = kInterleaved ? tile.o : tile.i, first_c = kInterleaved ? tile.i : tile.o;
  const auto height = static_cast<int>(a.out.h), width = static_cast<int>(a.out.w);
  if (threadIdx.x < kShiftAddRows + kTaps - 1) {
    const int y = tile.y + static_cast<int>(threadIdx.x) - 1;
    rows[threadIdx.x] = tap_of(a.resize.y, min(max(y, 0), height - 1));
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
    int held[kTaps];
#pragma unroll
    for (int d = 0; d < kTaps; ++d) {
      const Tap tap = tap_of(a.resize.x, min(max(x + d - 1, 0), width - 1));
      left[d] = offset_in(a.planes, 0, tap.low);
      right[d] = offset_in(a.planes, 0, tap.high);
      lambda[d] = tap.lambda;
      held[d] = -2;
    }
    const T* const planes = a.planes.data + tile.n * a.planes.stride_n + c * a.planes.stride_c;
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
        const Tap tap = rows[r + dy];
        const auto read = [&](int row, Acc (&v)[kTaps]) {
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx) {
            const T* at = planes + ((kTaps * dy + dx) * a.out.c * a.planes.stride_c + row * a.planes.stride_h);
            v[dx] = lerp(static_cast<Acc>(*advanced(at, left[dx])), static_cast<Acc>(*advanced(at, right[dx])), lambda[dx]);
          }
        };
        if (tap.low != held[dy]) {
          if (tap.low == held[dy] + 1) {
#pragma unroll
            for (int dx = 0; dx < kTaps; ++dx) upper[dy][dx] = lower[dy][dx];
          } else {
            read(tap.low, upper[dy]);
          }
          read(tap.high, lower[dy]);
          held[dy] = tap.low;
        }
        const Acc below = tap.lambda;
        const Acc left_sum = lerp(upper[dy][0], lower[dy][0], below), right_sum = lerp(upper[dy][2], lower[dy][2], below);
        sum += lerp(upper[dy][1], lower[dy][1], below);
        if (x > 0) sum += left_sum;
        if (x < width - 1) sum += right_sum;
      }
      *to = static_cast<T>(sum);
      to += a.staging.row_pitch;
    }
  }
  __syncthreads();
  a.staging.store(staged, out, tile, tile.rows);
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
      a.resize = Resize(a.planes.h, a.planes.w, out.h, out.w);
      const int64_t all_outer = kInterleaved ? out.w : out.c, all_inner = kInterleaved ? out.c : out.w;
      const int64_t inner = balanced(all_inner, 2 * kBlockThreads);
      int64_t outer = std::max<int64_t>(1, 2 * kBlockThreads / inner), rows = kShiftAddRows;
      const auto cut = [&] { a.tiling = Tiling(out.n, out.h, all_outer, all_inner, rows, outer, inner); };
      cut();
      for (; a.tiling.blocks() < kBlocksWanted && outer > 1 && outer * inner > kBlockThreads; cut()) --outer;
      for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
      a.staging = Staging(out, a.tiling, a.tiling.rows, kInterleaved);
      launch(planes, a.tiling.blocks(), kBlockThreads, a.staging.template bytes<T>(), shift_add<T, kInterleaved>, a);
    });
  });
  return y;
}

template <class T>
struct ShiftAddBackwardArguments {
  Map<const T> grad;
  Map<T> grad_planes;
  Resize resize;
  Tiling tiling;
};

// A thread owns a pixel of V adjacent channels in the planes of all taps, and visits the outputs that read it.
template <class T, int V, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 || V > 1 ? 2 : 4)
    shift_add_backward(const __grid_constant__ ShiftAddBackwardArguments<T> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  int i = threadIdx.x;
  const int o = a.tiling.columns_inner.split(i);
  if (o >= tile.outer || i >= tile.inner) return;
  const int x = kInterleaved ? tile.o + o : tile.i + i, c = kInterleaved ? (tile.i + i) * V : tile.o + o;
  const auto height = static_cast<int>(a.grad.h), width = static_cast<int>(a.grad.w);
  const auto range = [](const Axis& axis, int at, int& first, int& last) {
    int64_t begin, end;
    axis.readers(at, begin, end);
    first = static_cast<int>(begin);
    last = static_cast<int>(end);
  };
  int y_first, y_last, x_first, x_last;
  range(a.resize.y, tile.y, y_first, y_last);
  range(a.resize.x, x, x_first, x_last);
  const T* const grad = a.grad.data + tile.n * a.grad.stride_n + c * a.grad.stride_c;
  T* to = a.grad_planes.data + tile.n * a.grad_planes.stride_n + c * a.grad_planes.stride_c +
          tile.y * a.grad_planes.stride_h + x * a.grad_planes.stride_w;
  const auto weight_of = [](const Axis& axis, int out, int in) {
    const Tap tap = tap_of(axis, out);
    const Acc lambda = tap.lambda;
    return (tap.low == in ? 1 - lambda : Acc(0)) + (tap.high == in ? lambda : Acc(0));
  };
#pragma unroll 1
  for (int dy = 0; dy < kTaps; ++dy) {
    Acc sum[kTaps][V] = {};
#pragma unroll 1
    for (int v = y_first; v <= y_last; ++v) {
      const int y = v + 1 - dy;
      if (y < 0 || y >= height) continue;
      const Acc weight_y = weight_of(a.resize.y, v, tile.y);
      // Column u + 1 - dx of the gradient, for all u: from column x_first - 1 on, each serves up to three taps.
      Acc weight[kTaps] = {};  // of the columns u that a tap dx reads at the gradient's column
#pragma unroll 1
      for (int column = x_first - 1; column <= x_last + 1; ++column) {
#pragma unroll
        for (int dx = 0; dx < kTaps - 1; ++dx) weight[dx] = weight[dx + 1];
        const int u = column + 1;
        weight[2] = u >= x_first && u <= x_last ? weight_y * weight_of(a.resize.x, u, x) : Acc(0);
        if (column < 0 || column >= width) continue;
        Acc g[V];
        load_values<T, V>(grad + (y * a.grad.stride_h + column * a.grad.stride_w), g);
#pragma unroll
        for (int dx = 0; dx < kTaps; ++dx) {
          const int tap_u = column - 1 + dx;
          if (tap_u < x_first || tap_u > x_last) continue;
#pragma unroll
          for (int k = 0; k < V; ++k) sum[dx][k] += weight[dx] * g[k];
        }
      }
    }
#pragma unroll
    for (int dx = 0; dx < kTaps; ++dx) {
      store_values<T, V>(to + (kTaps * dy + dx) * a.grad.c * a.grad_planes.stride_c, sum[dx]);
    }
  }
}

inline Tensor interp_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<const T> from = map_of<const T>(grad);
    const Map<T> to = map_of<T>(grad_planes);
    const auto run = [&](auto pack, auto layout) {
      constexpr int V = decltype(pack)::value;
      constexpr bool kInterleaved = decltype(layout)::value;
      const int64_t all_outer = kInterleaved ? to.w : from.c, all_inner = kInterleaved ? from.c / V : to.w;
      const int64_t inner = balanced(all_inner, kBlockThreads);
      const ShiftAddBackwardArguments<T> a{
          from, to, Resize(to.h, to.w, from.h, from.w),
          Tiling(to.n, to.h, all_outer, all_inner, 1, std::max<int64_t>(1, kBlockThreads / inner), inner)};
      launch(grad, a.tiling.blocks(), kBlockThreads, 0, shift_add_backward<T, V, kInterleaved>, a);
    };
    constexpr int kPack = kPackBytes / sizeof(T);
    using One = std::integral_constant<int, 1>;
    if (packs<kPack>(from) && packs<kPack>(to)) run(std::integral_constant<int, kPack>{}, std::true_type{});
    else dispatch_layout(to, [&](auto layout) { run(One{}, layout); });
  });
  return grad_planes;
}

}  // namespace a2s
