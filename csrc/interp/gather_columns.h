// The CUDA kernel of Interp's adjoint in planar maps, where few outputs read an input along x, as from 41 pixels back
// to 31. A thread goes down a column of inputs, for K channels: it gathers each row of the gradient along x, and sums
// in registers what the row passes to the two rows of inputs around it.
#pragma once

#include "gather.h"

namespace a2s {

constexpr int kColumnRows = 8, kColumnThreads = 128;

template <class T>
struct GatherColumnsPart {
  Map<const T> grad;
  Map<T> out;
  ImageCopy<T> copy;
  Resize resize;  // of the forward pass
  acc_t<T> scale;
  Tiling tiling;
  Places places;
  Staging staging;
  int64_t next_row, next_channel;  // bytes between rows of `grad`, and between a thread's channels
};

template <class T>
struct GatherColumnsArguments {
  GatherColumnsPart<T> part[kMaxScales];
  Parts parts;
};

template <class T, int K>
__global__ void __launch_bounds__(kColumnThreads, sizeof(T) == 8 ? 6 : 10)
    gather_columns(const __grid_constant__ GatherColumnsArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ RowSpan spans[kColumnRows + 1];
  __shared__ int starts[kColumnThreads + 2];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const staged = reinterpret_cast<T*>(shared);
  int block = blockIdx.x;
  const auto& part = a.part[a.parts.part_of(block)];
  if (part.copy.bytes > 0) return part.copy.run(block);
  const Tile tile = part.tiling.tile(block);
  const Axis& axis = part.resize.x;
  const auto width = static_cast<int>(axis.out);
  if (threadIdx.x <= kColumnRows) {
    const int r = static_cast<int>(threadIdx.x) - 1;
    spans[threadIdx.x] = row_span(part.resize.y, tile.y + r, r < tile.rows);
  }
  store_starts(axis, tile.x, tile.width, 0, starts);
  __syncthreads();
  T* const out = place_in(part.out, tile.n, tile.c, tile.x, tile.y);
  int u, slot;
  part.places.template split<false>(threadIdx.x, u, slot);
  if (u < tile.width && slot < min(part.places.slots, tile.channels)) {
    const Readers readers{starts[u], starts[u + 1], starts[u + 2]};
    // Two columns are always read, the others where they read the input.
    const int first = min(readers.begin, width - 2), columns = readers.end - first;
    Acc weights[kReaders];
#pragma unroll
    for (int i = 0; i < kReaders; ++i) {
      const bool reads = first + i >= readers.begin && i < columns;
      weights[i] = reads ? readers.template weight<Acc>(axis, first + i) : 0;
      keep(weights[i]);
    }
    int y = spans[0].begin;
    const T* from[K];
    from[0] = row_of(part.grad, tile.n, tile.c + slot, first, y);
#pragma unroll
    for (int k = 1; k < K; ++k) {
      from[k] = slot + k * part.places.slots < tile.channels ? moved(from[k - 1], part.next_channel) : from[k - 1];
    }
    T* to = staged + (Staging::start(out) + slot * part.staging.outer_pitch + u);
    Acc upper[K], lower[K] = {};
#pragma unroll 1
    for (int r = -1; r < tile.rows; ++r) {
      const RowSpan span = spans[r + 1];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        upper[k] = lower[k];
        lower[k] = 0;
      }
#pragma unroll 1
      for (; y < span.end; ++y) {
        const Acc below = exact_sub(exact_mul(span.slope, static_cast<float>(y)), span.low), above = 1 - below;
        Acc sum[K] = {};
#pragma unroll
        for (int i = 0; i < kReaders; ++i) {
          if (i > 1 && i >= columns) break;
#pragma unroll
          for (int k = 0; k < K; ++k) sum[k] += weights[i] * static_cast<Acc>(from[k][i]);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
          from[k] = moved(from[k], part.next_row);
          upper[k] += above * sum[k];
          lower[k] += below * sum[k];
        }
      }
      if (r < 0) continue;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (slot + k * part.places.slots < tile.channels) {
          to[k * part.places.slots * part.staging.outer_pitch] = static_cast<T>(part.scale * upper[k]);
        }
      }
      to += part.staging.row_pitch;
    }
  }
  __syncthreads();
  part.staging.store(staged, out, tile.rows, tile.channels, tile.width);
}

// Gathers up to kMaxScales planar maps; false if the kernel does not fit them.
template <class T>
bool launch_gather_columns(const Tensor& on, const std::vector<Map<T>>& maps, const std::vector<Map<const T>>& grads,
                           acc_t<T> scale) {
  constexpr int K = 4;
  GatherColumnsArguments<T> a{};
  int shared_bytes = 0;
  for (size_t s = 0; s < maps.size(); ++s) {
    auto& part = a.part[s];
    part.grad = grads[s];
    part.out = maps[s];
    part.resize = Resize(part.out.h, part.out.w, part.grad.h, part.grad.w);
    part.scale = scale;
    if (part.resize.copies && scale == 1) part.copy = ImageCopy<T>(part.grad, part.out);
    if (part.copy.bytes > 0) {
      a.parts.add(part.copy.blocks(part.out.n));
      continue;
    }
    const bool few = part.resize.x.ratio * kReaders >= 2 && part.grad.w > 1;
    if (!few || part.resize.copies || part.grad.stride_w != 1) return false;
    const Map<T>& out = part.out;
    const int width = balanced(out.w, kColumnThreads);
    const int64_t slots = std::clamp<int64_t>(kColumnThreads / width, 1, ceil_div(out.c, K));
    int64_t rows = kColumnRows;
    const auto cut = [&] { part.tiling = Tiling(out.n, out.h, out.w, out.c, rows, width, K * slots); };
    cut();
    for (; part.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
    part.places = Places(width, slots, false);
    part.staging = Staging(out, part.tiling.rows, part.tiling.channels, width, false);
    part.next_row = bytes_between_rows(part.grad);
    part.next_channel = slots * part.grad.stride_c * static_cast<int64_t>(sizeof(T));
    shared_bytes = std::max(shared_bytes, part.staging.template bytes<T>());
    a.parts.add(part.tiling.blocks());
  }
  launch(on, a.parts.blocks, kColumnThreads, shared_bytes, gather_columns<T, K>, a);
  return true;
}

}  // namespace a2s
