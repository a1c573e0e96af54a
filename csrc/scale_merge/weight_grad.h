// The CUDA kernel for the gradients that the attention's weights and the recalibration get: sums over the channels of
// the merged grid, which a block reads once.
//
// A block owns kPixels columns and kRows rows; kShares threads share the channels of a column. In planar maps adjacent
// threads are adjacent columns, in channels_last ones adjacent channels.
#pragma once

#include "merge.h"

namespace a2s {

template <class T, int S>
struct WeightGradArguments {
  Map<const T> maps[S];
  Resize resize[S];
  Map<const T> grad, recalibration, grad_weights, weights;  // data of the second and third is null if there is none
  Map<T> grad_logits;                                       // where the logits have the merged grid; else data is null and
  Map<acc_t<T>> weight_grad;                                // the gradient of the weights goes here
  Map<T> grad_recalibration;
  Tiling tiling;  // of (rows, 1, columns)
};

constexpr int kWeightGradPixels = 32, kWeightGradRows = 4;

template <class T, int S, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : 2)
    weight_grad_kernel(const __grid_constant__ WeightGradArguments<T, S> a) {
  using Acc = acc_t<T>;
  constexpr int kPixels = kWeightGradPixels, kRows = kWeightGradRows, kShares = kBlockThreads / kPixels;
  __shared__ SourceRows<Acc> sources[S][kRows];
  __shared__ Acc sums[kRows][S][kShares][kPixels + 1];
  __shared__ Acc weights[kRows][S][kPixels];
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int thread = threadIdx.x;
  const int p = kInterleaved ? thread / kShares : thread % kPixels;
  const int share = kInterleaved ? thread % kShares : thread / kPixels;
  if (thread < S * kRows && thread % kRows < tile.rows) {
    const int s = thread / kRows, r = thread % kRows;
    sources[s][r] = source_rows<T>(a.maps[s], a.resize[s].y, tile.y + r, r == 0);
  }
  for (int k = thread; k < kRows * S * kPixels; k += kBlockThreads) {
    const int x = k % kPixels, s = k / kPixels % S, r = k / kPixels / S;
    if (r < tile.rows) {
      weights[r][s][x] = static_cast<Acc>(a.weights.at(tile.n, s, tile.y + r, tile.i + min(x, tile.inner - 1)));
    }
  }
  __syncthreads();

  const int x = tile.i + min(p, tile.inner - 1);
  HeldRows<T, 1, 1> map[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const Tap tap = tap_of(a.resize[s].x, x);
    map[s].base = row_of(a.maps[s], tile.n, share, tap.low, 0);
    map[s].left[0] = 0;
    map[s].right[0] = offset_in(a.maps[s], 0, tap.high - tap.low);
    map[s].lambda[0] = tap.lambda;
  }
  const T* grad = row_of(a.grad, tile.n, share, x, tile.y);
  const T* recalibration = nullptr;
  T* grad_recalibration = nullptr;
  if (a.recalibration.data) {
    recalibration = row_of(a.recalibration, tile.n, share, x, tile.y);
    const Map<T>& map = a.grad_recalibration;
    grad_recalibration = map.data + tile.n * map.stride_n + share * map.stride_c + tile.y * map.stride_h + x * map.stride_w;
  }
  Acc sum[kRows][S] = {};
  const auto channels = static_cast<int>(a.grad.c);
#pragma unroll 1
  for (int c = share; c < channels; c += kShares) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= tile.rows) break;
      Acc v[S];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        Acc value[1][1];
        if (a.resize[s].copies) map[s].copied_row(sources[s][r], value);
        else map[s].row(sources[s][r], value);
        v[s] = value[0][0];
      }
      Acc g = static_cast<Acc>(grad[r * a.grad.stride_h]);
      if (recalibration) {
        Acc merged = weights[r][0][p] * v[0];
#pragma unroll
        for (int s = 1; s < S; ++s) merged += weights[r][s][p] * v[s];
        if (p < tile.inner) grad_recalibration[r * a.grad_recalibration.stride_h] = static_cast<T>(merged * g);
        g *= static_cast<Acc>(recalibration[r * a.recalibration.stride_h]);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) sum[r][s] += g * v[s];
    }
#pragma unroll
    for (int s = 0; s < S; ++s) map[s].base += kShares * a.maps[s].stride_c;
    grad += kShares * a.grad.stride_c;
    if (recalibration) {
      recalibration += kShares * a.recalibration.stride_c;
      grad_recalibration += kShares * a.grad_recalibration.stride_c;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int s = 0; s < S; ++s) sums[r][s][share][p] = sum[r][s];
  }
  __syncthreads();

  const int r = thread / kPixels, column = thread % kPixels;
  if (r >= tile.rows || column >= tile.inner) return;
  Acc g[S], w[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    g[s] = a.grad_weights.data ? static_cast<Acc>(a.grad_weights.at(tile.n, s, tile.y + r, tile.i + column)) : Acc(0);
#pragma unroll
    for (int k = 0; k < kShares; ++k) g[s] += sums[r][s][k][column];
    w[s] = weights[r][s][column];
  }
  if (a.grad_logits.data) {
    softmax_backward(g, w);
#pragma unroll
    for (int s = 0; s < S; ++s) a.grad_logits.at(tile.n, s, tile.y + r, tile.i + column) = static_cast<T>(g[s]);
  } else {
#pragma unroll
    for (int s = 0; s < S; ++s) a.weight_grad.at(tile.n, s, tile.y + r, tile.i + column) = g[s];
  }
}

// A thread owns pixel (y, x) of the logits' grid, where that differs from the merged one: Interp's adjoint of the
// weights' gradient, then through the softmax.
template <class T, int S>
struct LogitGradArguments {
  Map<const T> logits;
  Map<const acc_t<T>> weight_grad;
  Resize resize;
  Map<T> grad_logits;
  Tiling tiling;  // of (rows, 1, columns)
};

template <class T, int S>
__global__ void __launch_bounds__(kBlockThreads, 4)
    logit_grad_kernel(const __grid_constant__ LogitGradArguments<T, S> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = tile.i + threadIdx.x, y = tile.y;
  if (static_cast<int>(threadIdx.x) >= tile.inner) return;
  int64_t y_first, y_last, x_first, x_last;
  a.resize.y.readers(y, y_first, y_last);
  a.resize.x.readers(x, x_first, x_last);
  Acc w[S], g[S] = {};
  for (int64_t v = y_first; v <= y_last; ++v) {
    const Acc weight_y = a.resize.y.template weight<Acc>(v, y);
    for (int64_t u = x_first; u <= x_last; ++u) {
      const Acc weight = weight_y * a.resize.x.template weight<Acc>(u, x);
#pragma unroll
      for (int s = 0; s < S; ++s) g[s] += weight * a.weight_grad.at(tile.n, s, v, u);
    }
  }
  softmax_at(a.logits, tile.n, y, x, w);
  softmax_backward(g, w);
#pragma unroll
  for (int s = 0; s < S; ++s) a.grad_logits.at(tile.n, s, y, x) = static_cast<T>(g[s]);
}

}  // namespace a2s
