// interp_shift_add and its adjoint on a GPU.
#include <torch/csrc/stable/library.h>

#include "../interp/launch_gather.h"
#include "interp_shift_add.h"

namespace a2s {
namespace {

template <class T>
struct ShiftAddArguments {
  Map<const T> planes, base;
  Map<T> out;
  Resize resize;
  int64_t next_tap;  // bytes between the planes of adjacent taps
  Tiling tiling;
  Places places;
  Staging staging;
};

constexpr int kShiftAddRows = 8;

// Keeps values in registers. The compiler would compute them again in each branch that uses them.
__device__ inline void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
__device__ inline void keep(float& v) { asm volatile("" : "+f"(v)); }
__device__ inline void keep(double& v) { asm volatile("" : "+d"(v)); }
template <class T>
__device__ void keep(const T*& v) { asm volatile("" : "+l"(v)); }

// A thread goes down a column. The planes of each tap sample rows and columns of their own, next to the thread's. The
// taps of a row of taps sample the same rows: of these, resized along x and summed over the taps, two are held.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4)
    shift_add(const __grid_constant__ ShiftAddArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ SourceRows<Acc> rows[kShiftAddRows + kTaps - 1];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* staged = reinterpret_cast<T*>(shared);
  const Tile tile = a.tiling.tile(blockIdx.x);
  const auto height = static_cast<int>(a.out.h), width = static_cast<int>(a.out.w);
  if (threadIdx.x < kShiftAddRows + kTaps - 1) {
    const int y = tile.y + static_cast<int>(threadIdx.x) - 1;
    rows[threadIdx.x] = source_rows<T>(a.planes, a.resize.y, min(max(y, 0), height - 1), y <= 0);
  }
  __syncthreads();
  T* const out = place_in(a.out, tile.n, tile.c, tile.x, tile.y);
  int column, channel;
  a.places.template split<kInterleaved>(threadIdx.x, column, channel);
  if (column < tile.width && channel < tile.channels) {
    const int x = tile.x + column, c = tile.c + channel;
    uint32_t left[kTaps], right[kTaps];
    Acc left_share[kTaps], right_share[kTaps], upper[kTaps], lower[kTaps];
    bool inside[kTaps];  // taps beyond the map are 0
#pragma unroll
    for (int d = 0; d < kTaps; ++d) {
      inside[d] = static_cast<uint32_t>(x + d - 1) < static_cast<uint32_t>(width);
      const Tap tap = tap_of(a.resize.x, inside[d] ? x + d - 1 : x);
      left[d] = offset_in(a.planes, 0, tap.low);
      right[d] = offset_in(a.planes, 0, tap.high);
      right_share[d] = tap.lambda;
      left_share[d] = 1 - right_share[d];
      keep(left[d]);
      keep(right[d]);
      keep(left_share[d]);
    }
    const T* planes[kTaps];  // of the first tap in each row of taps
#pragma unroll
    for (int dy = 0; dy < kTaps; ++dy) {
      planes[dy] = moved(row_of(a.planes, tile.n, c, 0, 0), kTaps * dy * a.next_tap);
      keep(planes[dy]);
    }
    const T* from = row_of(a.base, tile.n, c, x, tile.y);
    const int pitch = a.staging.outer_pitch;
    T* to = staged + Staging::start(out) + (kInterleaved ? channel + column * pitch : column + channel * pitch);
#pragma unroll 1
    for (int r = 0; r < tile.rows; ++r) {
      Acc sum = static_cast<Acc>(*from);
      from += a.base.stride_h;
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        const int y = tile.y + r + dy - 1;
        if (y < 0 || y >= height) continue;
        const auto read = [&](int64_t row) {
          const T* tap = moved(planes[dy], row);
          Acc v = 0;
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx, tap = moved(tap, a.next_tap)) {
            if (dx != 1 && !inside[dx]) continue;
            v += left_share[dx] * static_cast<Acc>(*advanced(tap, left[dx]));
            v += right_share[dx] * static_cast<Acc>(*advanced(tap, right[dx]));
          }
          return v;
        };
        const SourceRows<Acc>& source = rows[r + dy];
        const int step = r == 0 ? 2 : source.step;
        if (step > 0) {
          upper[dy] = step > 1 ? read(source.low) : lower[dy];
          lower[dy] = read(source.high);
        }
        sum += source.above * upper[dy] + source.below * lower[dy];
      }
      *to = static_cast<T>(sum);
      to += a.staging.row_pitch;
    }
  }
  __syncthreads();
  const int outer = kInterleaved ? tile.width : tile.channels, inner = kInterleaved ? tile.channels : tile.width;
  a.staging.store(staged, out, tile.rows, outer, inner);
}

Tensor interp_shift_add(const Tensor& planes, const Tensor& base) {
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
      a.next_tap = out.c * a.planes.stride_c * static_cast<int64_t>(sizeof(T));
      a.resize = Resize(a.planes.h, a.planes.w, out.h, out.w);
      if (kInterleaved) {
        const int64_t slots = balanced(out.c, kBlockThreads / 2);
        a.places = Places(balanced(out.w, kBlockThreads / slots), slots, true);
      } else {
        const int64_t columns = balanced(out.w, kBlockThreads);
        a.places = Places(columns, std::clamp<int64_t>(kBlockThreads / columns, 1, out.c), false);
      }
      int64_t rows = kShiftAddRows;
      const auto cut = [&] {
        a.tiling = Tiling(out.n, out.h, out.w, out.c, rows, a.places.width, a.places.slots);
      };
      cut();
      for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
      const int outer = kInterleaved ? a.tiling.width : a.tiling.channels;
      a.staging = Staging(out, a.tiling.rows, outer, kInterleaved ? a.tiling.channels : a.tiling.width, kInterleaved);
      const int bytes = a.staging.template bytes<T>();
      launch(planes, a.tiling.blocks(), a.places.threads(), bytes, shift_add<T, kInterleaved>, a);
    });
  });
  return y;
}

// The gradient, shifted by `shift` rows and padded with zeros: outputs in row y pass back row y - shift.
template <class T>
struct ShiftedGrad {
  static constexpr bool kWeighted = false;
  Map<const T> grad;
  int shift;
  int64_t next_row = bytes_between_rows(grad);

  struct Rows {
    const T* grad;
    int y;
  };
  struct Column {
    uint32_t offset;
    bool inside;
  };
  int64_t channel_limit() const { return a2s::channel_limit(grad); }
  __device__ Rows rows(int n, int c, int x, int y) const {
    return {row_of(grad, n, c, x, y - shift), y - shift};
  }
  __device__ void next(Rows& rows) const {
    rows.grad = moved(rows.grad, next_row);
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
Tensor interp_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> to = map_of<T>(grad_planes);
    const Tensor source = addressable(grad, is_interleaved(to));
    const Map<const T> from = map_of<const T>(source);
    std::vector<Map<T>> rows_of_taps;
    for (int dy = 0; dy < kTaps; ++dy) rows_of_taps.push_back(channels_of(to, dy * kTaps * from.c, kTaps * from.c));
    const auto value_of = [&](int dy) { return ShiftedGrad<T>{from, dy - 1}; };
    dispatch_layout(to, [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      if constexpr (kInterleaved && kPack<T> > 1) {
        if (packs<kPack<T>>(from) && packs<kPack<T>>(to)) {
          return launch_gather<T, kPack<T>, true, kTaps>(grad, rows_of_taps, from.h, from.w, 1, value_of);
        }
      }
      launch_gather<T, 1, kInterleaved, kTaps>(grad, rows_of_taps, from.h, from.w, 1, value_of);
    });
  });
  return grad_planes;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("interp_shift_add", TORCH_BOX(&a2s::interp_shift_add));
  m.impl("interp_shift_add_backward", TORCH_BOX(&a2s::interp_shift_add_backward));
}
