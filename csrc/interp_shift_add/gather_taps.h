// The CUDA kernel of interp_shift_add's adjoint: the gradients of all nine planes from one pass over the gradient.
#pragma once

#include "../interp/gather.h"
#include "interp_shift_add.h"

namespace a2s {

constexpr int kTapRows = 8;
constexpr int kTapThreads = 128;

template <class T>
struct GatherTapsArguments {
  Map<const T> grad;
  Map<T> out;  // planes of the first tap
  int64_t next_tap, next_out_row;  // bytes between planes of adjacent taps, and between rows of the planes
  int64_t next_column, next_row;   // and of the gradient
  Resize resize;  // of the forward pass
  Tiling tiling;  // into groups of K channels
  Places places;
};

// The adjoint, of all taps together. A thread goes down a column of the planes. In each row of the gradient it gathers
// along x what the three taps of a row of taps read; of these sums it holds three rows, because at row y of the resized
// planes the rows of taps pass back rows y + 1, y and y - 1 of the gradient.
template <class T, int K, bool kInterleaved>
__global__ void __launch_bounds__(kTapThreads, sizeof(T) == 8 || K > 1 ? 5 : 8)
    gather_taps(const __grid_constant__ GatherTapsArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ RowSpan spans[kTapRows + 1];
  __shared__ int starts[kTapThreads + 2];
  const Tile tile = a.tiling.tile(blockIdx.x);
  const Axis& axis = a.resize.x;
  const auto height = static_cast<uint32_t>(a.grad.h);
  const auto width = static_cast<int>(a.grad.w);
  if (threadIdx.x <= kTapRows) {
    const int r = static_cast<int>(threadIdx.x) - 1;
    spans[threadIdx.x] = row_span(a.resize.y, tile.y + r, r < tile.rows);
  }
  store_starts(axis, tile.x, tile.width, 0, starts);
  __syncthreads();
  int u, slot;
  a.places.template split<kInterleaved>(threadIdx.x, u, slot);
  if (u >= tile.width || slot >= tile.channels) return;
  // Along x: readers, and columns of the gradient from the one before the first reader, which the taps beside it read.
  const Readers of_input{starts[u], starts[u + 1], starts[u + 2]};
  const int c = (tile.c + slot) * K, begin = min(of_input.begin, width - 1), readers = of_input.end - begin;
  const int columns = min(of_input.end + 1, width) - (begin - 1);
  Acc weights[kReaders];
#pragma unroll
  for (int i = 0; i < kReaders; ++i) {
    weights[i] = i < readers ? of_input.template weight<Acc>(axis, begin + i) : 0;
    keep(weights[i]);
  }
  const auto gather_along_x = [&](const T* from, Acc* sum) {
    Acc v[kTaps][K];  // of three columns, the last one first
    const auto load = [&](bool there) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        v[2][k] = v[1][k];
        v[1][k] = v[0][k];
        v[0][k] = 0;
      }
      if (there) load_values<T, K>(from, v[0]);
      from = kInterleaved ? moved(from, a.next_column) : from + 1;
    };
    const auto add = [&](Acc weight) {
#pragma unroll
      for (int dx = 0; dx < kTaps; ++dx) {
#pragma unroll
        for (int k = 0; k < K; ++k) sum[dx * K + k] += weight * v[dx][k];
      }
    };
    load(begin > 0);
    load(true);
#pragma unroll
    for (int i = 0; i < kReaders; ++i) {
      if (i > 1 && i >= readers) return;
      load(i + 2 < columns);
      add(weights[i]);
    }
#pragma unroll 1
    for (int i = kReaders; i < readers; ++i) {
      load(i + 2 < columns);
      add(of_input.template weight<Acc>(axis, begin + i));
    }
  };
  int y = spans[0].begin;
  const T* from = row_of(a.grad, tile.n, c, begin - 1, y - 1);
  T* to = place_in(a.out, tile.n, c, tile.x + u, tile.y);
  // Of nine planes: what they read in the gradient, and what they have of it in two rows.
  constexpr int kRow = kTaps * K, kAll = kTaps * kRow;
  Acc v[kAll], upper[kAll], lower[kAll] = {};
  const auto take = [&](int row) {
#pragma unroll
    for (int i = 0; i < kRow; ++i) {
      v[2 * kRow + i] = v[kRow + i];
      v[kRow + i] = v[i];
      v[i] = 0;
    }
    if (static_cast<uint32_t>(row) < height) gather_along_x(from, v);
    from = moved(from, a.next_row);
  };
  take(y - 1);
  take(y);
#pragma unroll 1
  for (int r = -1; r < tile.rows; ++r) {
    const RowSpan span = spans[r + 1];
#pragma unroll
    for (int i = 0; i < kAll; ++i) {
      upper[i] = lower[i];
      lower[i] = 0;
    }
#pragma unroll 1
    for (; y < span.end; ++y) {
      const Acc below = exact_sub(exact_mul(span.slope, static_cast<float>(y)), span.low), above = 1 - below;
      take(y + 1);
#pragma unroll
      for (int i = 0; i < kAll; ++i) {
        upper[i] += above * v[i];
        lower[i] += below * v[i];
      }
    }
    if (r < 0) continue;
    T* tap = to;
#pragma unroll
    for (int plane = 0; plane < kAll; plane += K, tap = moved(tap, a.next_tap)) {
      Acc values[K];
#pragma unroll
      for (int k = 0; k < K; ++k) values[k] = upper[plane + k];
      store_values<T, K>(tap, values);
    }
    to = moved(to, a.next_out_row);
  }
}

template <class T, int K, bool kInterleaved>
void launch_gather_taps(const Tensor& on, const Map<const T>& grad, const Map<T>& planes) {
  GatherTapsArguments<T> a{};
  a.grad = grad;
  a.out = planes;
  a.next_tap = grad.c * planes.stride_c * static_cast<int64_t>(sizeof(T));
  a.next_column = grad.stride_w * static_cast<int64_t>(sizeof(T));
  a.next_row = bytes_between_rows(grad);
  a.next_out_row = bytes_between_rows(planes);
  a.resize = Resize(planes.h, planes.w, grad.h, grad.w);
  const int64_t channels = grad.c / K;
  int64_t slots = kInterleaved ? balanced(channels, 16) : 1, rows = kTapRows;
  const int width = balanced(planes.w, kTapThreads / slots);
  if (!kInterleaved) slots = std::min<int64_t>(channels, kTapThreads / width);
  a.places = Places(width, slots, kInterleaved);
  const auto cut = [&] { a.tiling = Tiling(planes.n, planes.h, planes.w, channels, rows, width, slots); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted * 3 / 2 && rows > 4; cut()) --rows;
  launch(on, a.tiling.blocks(), a.places.threads(), 0, gather_taps<T, K, kInterleaved>, a);
}

}  // namespace a2s
