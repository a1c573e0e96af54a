// The CUDA kernel for what a pixel of the merged grid passes back by itself: the gradients of the attention's weights,
// which are sums over channels, of the recalibration, and of maps that are not resized.
//
// Threads share the channels of a column of pixels, and take two at once. In planar maps adjacent threads are adjacent
// columns, in channels_last ones adjacent channels.
#pragma once

#include "merge.h"

namespace a2s {

template <class T, int S>
struct WeightGradArguments {
  Map<const T> maps[S];
  Resize resize[S];
  Map<const T> grad, recalibration, grad_weights, weights;  // data of the second and third is null if there is none
  // Where the logits have the merged grid; else data is null and the gradient of the weights goes to weight_grad.
  Map<T> grad_logits;
  Map<acc_t<T>> weight_grad;
  Map<T> grad_recalibration;
  T* grad_maps[S];  // of maps that are not resized, with the strides of `copied`; null for the others
  Map<T> copied;
  Tiling tiling;
  Places places;  // slots are shares of the channels
  Divisor by_width;
  bool interleaved;
  int group;  // channels at once, of all shares
  // Bytes from a channel to the second one at once, to that of the next group, and between rows.
  uint32_t second_map[S], second_grad, second_recalibration, second_grad_recalibration, second_copied;
  int64_t next_map[S], next_grad, next_recalibration, next_grad_recalibration, next_copied;
  int64_t grad_row, recalibration_row, grad_recalibration_row, copied_row;
};

constexpr int kWeightGradPixels = 144, kWeightGradRows = 3, kWeightGradChannels = 2;

template <class T, int S>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 1 : S == 4 ? 2 : 3)
    weight_grad_kernel(const __grid_constant__ WeightGradArguments<T, S> a) {
  using Acc = acc_t<T>;
  constexpr int kRows = kWeightGradRows, K = kWeightGradChannels;
  __shared__ SourceRows<Acc> sources[S][kRows];
  __shared__ Acc sums[kRows][S][kBlockThreads];
  __shared__ PixelWeights<Acc, S> weights[kRows][kWeightGradPixels];
  const Tile tile = a.tiling.tile(blockIdx.x);
  for (int i = threadIdx.x; i < S * kRows; i += blockDim.x) {
    const int s = i / kRows, r = i % kRows;
    sources[s][r] = source_rows<T>(a.maps[s], a.resize[s].y, tile.y + min(r, tile.rows - 1), r == 0);
  }
  for (int i = threadIdx.x; i < tile.rows * a.tiling.width; i += blockDim.x) {
    int x = i;
    const int r = a.by_width.split(x);
    if (x >= tile.width) continue;
    PixelWeights<Acc, S> w{};
#pragma unroll
    for (int s = 0; s < S; ++s) w.w[s] = static_cast<Acc>(a.weights.at(tile.n, s, tile.y + r, tile.x + x));
    weights[r][x] = w;
  }
  __syncthreads();

  const int shares = a.places.slots;
  int inner = threadIdx.x;
  const int outer = a.places.by_inner.split(inner);
  const int column = a.interleaved ? outer : inner, share = a.interleaved ? inner : outer;
  if (column < tile.width && share < shares) {
    const int x = tile.x + column;
    HeldRows<T, 1, K> map[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Tap tap = tap_of(a.resize[s].x, x);
      map[s].base = row_of(a.maps[s], tile.n, share, tap.low, 0);
      map[s].left[0] = 0;
      map[s].right = offset_in(a.maps[s], 0, tap.high - tap.low);
      map[s].right_share = tap.lambda;
      map[s].left_share = 1 - map[s].right_share;
    }
    const T* grad = row_of(a.grad, tile.n, share, x, tile.y);
    const T* recalibration = nullptr;
    T* grad_recalibration = nullptr;
    if (a.recalibration.data) {
      recalibration = row_of(a.recalibration, tile.n, share, x, tile.y);
      grad_recalibration = place_in(a.grad_recalibration, tile.n, share, x, tile.y);
    }
    int64_t copied = (tile.n * a.copied.stride_n + share * a.copied.stride_c + x * a.copied.stride_w +
                      tile.y * a.copied.stride_h) * static_cast<int64_t>(sizeof(T));
    Acc sum[kRows][S] = {};
    const auto channels = static_cast<int>(a.grad.c);
#pragma unroll 1
    for (int c = share; c < channels; c += a.group) {
      // Where there is no second channel, the first one is read again, and left out of the sums.
      const bool two = a.group > shares && c + shares < channels;
      const auto read = [&](const T* from, uint32_t second, Acc (&v)[K]) {
        v[0] = static_cast<Acc>(*from);
        v[1] = two ? static_cast<Acc>(*advanced(from, second)) : Acc(0);
      };
      const auto write = [&](T* to, uint32_t second, const Acc (&v)[K]) {
        *to = static_cast<T>(v[0]);
        if (two) *moved(to, second) = static_cast<T>(v[1]);
      };
#pragma unroll
      for (int s = 0; s < S; ++s) map[s].left[1] = two ? a.second_map[s] : 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= tile.rows) break;
        const PixelWeights<Acc, S> w = weights[r][column];
        Acc v[S][K], g[K];
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const SourceRows<Acc>& source = sources[s][r];
          if (a.resize[s].copies) {
            Acc copied_values[K][1];
            map[s].copy(source, copied_values);
#pragma unroll
            for (int k = 0; k < K; ++k) v[s][k] = copied_values[k][0];
          } else {
            map[s].advance(source, source.step);
#pragma unroll
            for (int k = 0; k < K; ++k) v[s][k] = source.above * map[s].upper[k][0] + source.below * map[s].lower[k][0];
          }
        }
        read(moved(grad, r * a.grad_row), a.second_grad, g);
        if (recalibration) {
          Acc passed[K], factor[K];
#pragma unroll
          for (int k = 0; k < K; ++k) {
            Acc merged = w.w[0] * v[0][k];
#pragma unroll
            for (int s = 1; s < S; ++s) merged += w.w[s] * v[s][k];
            passed[k] = merged * g[k];
          }
          write(moved(grad_recalibration, r * a.grad_recalibration_row), a.second_grad_recalibration, passed);
          read(moved(recalibration, r * a.recalibration_row), a.second_recalibration, factor);
#pragma unroll
          for (int k = 0; k < K; ++k) g[k] *= factor[k];
        }
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            if (k == 0 || two) sum[r][s] += g[k] * v[s][k];
          }
          if (a.grad_maps[s]) {
            write(moved(a.grad_maps[s], copied + r * a.copied_row), a.second_copied, {w.w[s] * g[0], w.w[s] * g[1]});
          }
        }
      }
#pragma unroll
      for (int s = 0; s < S; ++s) map[s].base = moved(map[s].base, a.next_map[s]);
      grad = moved(grad, a.next_grad);
      copied += a.next_copied;
      if (recalibration) {
        recalibration = moved(recalibration, a.next_recalibration);
        grad_recalibration = moved(grad_recalibration, a.next_grad_recalibration);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int s = 0; s < S; ++s) sums[r][s][threadIdx.x] = sum[r][s];
    }
  }
  __syncthreads();

  const int next_x = a.interleaved ? shares : 1, next_share = a.interleaved ? 1 : a.places.width;
  for (int i = threadIdx.x; i < tile.rows * a.tiling.width; i += blockDim.x) {
    int x = i;
    const int r = a.by_width.split(x);
    if (x >= tile.width) continue;
    Acc g[S], w[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      g[s] = a.grad_weights.data ? static_cast<Acc>(a.grad_weights.at(tile.n, s, tile.y + r, tile.x + x)) : Acc(0);
      for (int k = 0; k < shares; ++k) g[s] += sums[r][s][x * next_x + k * next_share];
      w[s] = weights[r][x].w[s];
    }
    if (a.grad_logits.data) {
      softmax_backward(g, w);
#pragma unroll
      for (int s = 0; s < S; ++s) a.grad_logits.at(tile.n, s, tile.y + r, tile.x + x) = static_cast<T>(g[s]);
    } else {
#pragma unroll
      for (int s = 0; s < S; ++s) a.weight_grad.at(tile.n, s, tile.y + r, tile.x + x) = g[s];
    }
  }
}

// A thread owns pixel (y, x) of the logits' grid, where that differs from the merged one: Interp's adjoint of the
// weights' gradient, then through the softmax.
template <class T>
struct LogitGradArguments {
  Map<const T> logits;
  Map<const acc_t<T>> weight_grad;
  Resize resize;
  Map<T> grad_logits;
  Tiling tiling;  // without channels
};

template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4)
    logit_grad_kernel(const __grid_constant__ LogitGradArguments<T> a) {
  using Acc = acc_t<T>;
  const Tile tile = a.tiling.tile(blockIdx.x);
  const int x = tile.x + threadIdx.x, y = tile.y;
  if (static_cast<int>(threadIdx.x) >= tile.width) return;
  const auto scales = static_cast<int>(a.logits.c);
  int64_t y_first, y_last, x_first, x_last;
  a.resize.y.readers(y, y_first, y_last);
  a.resize.x.readers(x, x_first, x_last);
  Acc w[kMaxScales], g[kMaxScales] = {};
  for (int64_t v = y_first; v <= y_last; ++v) {
    const Acc weight_y = a.resize.y.template weight<Acc>(v, y);
    for (int64_t u = x_first; u <= x_last; ++u) {
      const Acc weight = weight_y * a.resize.x.template weight<Acc>(u, x);
#pragma unroll
      for (int s = 0; s < kMaxScales; ++s) {
        if (s < scales) g[s] += weight * a.weight_grad.at(tile.n, s, v, u);
      }
    }
  }
  // Scales that are not there have weight 0.
#pragma unroll
  for (int s = 0; s < kMaxScales; ++s) w[s] = s < scales ? static_cast<Acc>(a.logits.at(tile.n, s, y, x)) : -INFINITY;
  softmax(w);
  softmax_backward(g, w);
#pragma unroll
  for (int s = 0; s < kMaxScales; ++s) {
    if (s < scales) a.grad_logits.at(tile.n, s, y, x) = static_cast<T>(g[s]);
  }
}

}  // namespace a2s
