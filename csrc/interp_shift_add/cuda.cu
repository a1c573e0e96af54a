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

// A thread goes down a column, for K adjacent channels. The planes of each tap sample rows and columns of their own,
// next to the thread's. The taps of a row of taps sample the same rows: of these, resized along x and summed over the
// taps, two are held.
template <class T, int K, bool kInterleaved>
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
  int column, slot;
  a.places.template split<kInterleaved>(threadIdx.x, column, slot);
  const int channel = slot * K;
  if (column < tile.width && channel < tile.channels) {
    const int x = tile.x + column, c = tile.c + channel;
    uint32_t left[kTaps], right[kTaps];
    Acc left_share[kTaps], right_share[kTaps], upper[kTaps][K], lower[kTaps][K];
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
      Acc sum[K];
      load_values<T, K>(from, sum);
      from += a.base.stride_h;
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        const int y = tile.y + r + dy - 1;
        if (static_cast<uint32_t>(y) >= static_cast<uint32_t>(height)) continue;
        const auto read = [&](int64_t row, Acc (&v)[K]) {
          const T* tap = moved(planes[dy], row);
#pragma unroll
          for (int k = 0; k < K; ++k) v[k] = 0;
#pragma unroll
          for (int dx = 0; dx < kTaps; ++dx, tap = moved(tap, a.next_tap)) {
            if (dx != 1 && !inside[dx]) continue;
            Acc l[K], r[K];
            load_values<T, K>(advanced(tap, left[dx]), l);
            load_values<T, K>(advanced(tap, right[dx]), r);
#pragma unroll
            for (int k = 0; k < K; ++k) {
              v[k] += left_share[dx] * l[k];
              v[k] += right_share[dx] * r[k];
            }
          }
        };
        const SourceRows<Acc>& source = rows[r + dy];
        const int step = r == 0 ? 2 : source.step;
        if (step > 0) {
          if (step > 1) read(source.low, lower[dy]);
#pragma unroll
          for (int k = 0; k < K; ++k) upper[dy][k] = lower[dy][k];
          read(source.high, lower[dy]);
        }
        const Acc above = source.above, below = source.below;
#pragma unroll
        for (int k = 0; k < K; ++k) sum[k] += above * upper[dy][k] + below * lower[dy][k];
      }
      store_values<T, K>(to, sum);
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
      const auto run = [&](auto adjacent) {
        constexpr int K = decltype(adjacent)::value;
        if (kInterleaved) {
          const int64_t slots = balanced(out.c / K, kBlockThreads / 2);
          a.places = Places(balanced(out.w, kBlockThreads / slots), slots, true);
        } else {
          const int64_t columns = balanced(out.w, kBlockThreads);
          a.places = Places(columns, std::clamp<int64_t>(kBlockThreads / columns, 1, out.c), false);
        }
        int64_t rows = kShiftAddRows;
        const auto cut = [&] {
          a.tiling = Tiling(out.n, out.h, out.w, out.c, rows, a.places.width, K * a.places.slots);
        };
        cut();
        for (; a.tiling.blocks() < kBlocksWanted * (K == 1 ? 4 : 3) / 4 && rows > 4; cut()) --rows;
        const int outer = kInterleaved ? a.tiling.width : a.tiling.channels;
        a.staging = Staging(out, a.tiling.rows, outer, kInterleaved ? a.tiling.channels : a.tiling.width, kInterleaved);
        const int bytes = a.staging.template bytes<T>();
        launch(planes, a.tiling.blocks(), a.places.threads(), bytes, shift_add<T, K, kInterleaved>, a);
      };
      // Two adjacent channels of 16 bits are loaded and stored at once.
      if constexpr (kInterleaved && sizeof(T) == 2) {
        if (packs<2>(a.planes) && packs<2>(a.base) && packs<2>(out)) return run(std::integral_constant<int, 2>{});
      }
      run(std::integral_constant<int, 1>{});
    });
  });
  return y;
}

// The gradient, shifted by `shift` rows and padded with zeros: outputs in row y pass back row y - shift.
template <class T>
struct ShiftedGrad {
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

constexpr int kTapRows = 8, kTapRowsAtOnce = 4;  // rows of a tile of planes, and those that a thread gathers along x
constexpr int kTapColumn = kTapRows + 1;         // an odd distance, so that adjacent threads access different banks

template <class T>
struct GatherTapsArguments {
  Map<const T> grad;
  Map<T> out;  // planes of the first tap
  int64_t next_tap;  // values between the planes of adjacent taps
  Resize resize;  // of the forward pass
  Tiling tiling;
  int window;  // columns of the gradient around those of a tile, at most
  Divisor by_window, by_width;
};

// The adjoint in planar maps, separable like gather.h's. A thread goes down a column of the gradient once, for all rows
// of taps: at row y of the resized planes, they pass back rows y + 1, y and y - 1 of the gradient. Along x, the three
// taps of a row likewise share what is read.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, sizeof(T) == 8 ? 2 : 4)
    gather_taps(const __grid_constant__ GatherTapsArguments<T> a) {
  using Acc = acc_t<T>;
  __shared__ RowSpan spans[kTapRows + 1];
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const sums = reinterpret_cast<Acc*>(shared);  // along y: [channel, row of taps, column, row]
  auto* const starts = reinterpret_cast<int*>(sums + a.tiling.channels * kTaps * a.window * kTapColumn);
  auto* const lambdas = reinterpret_cast<float*>(starts + a.tiling.width + 2);
  const Tile tile = a.tiling.tile(blockIdx.x);
  const Axis& axis = a.resize.x;
  if (threadIdx.x <= kTapRows) {
    const int r = static_cast<int>(threadIdx.x) - 1;
    spans[threadIdx.x] = row_span(a.resize.y, tile.y + r, r < tile.rows);
  }
  store_starts(axis, tile.x, tile.width, 0, starts);
  __syncthreads();
  const int first = starts[0], outputs = starts[tile.width + 1] - first, columns = outputs + kTaps - 1;
  store_lambdas(axis, first, outputs, lambdas);

  const auto height = static_cast<uint32_t>(a.grad.h), width = static_cast<uint32_t>(a.grad.w);
  for (int i = threadIdx.x; i < a.tiling.channels * a.window; i += blockDim.x) {
    int u = i;
    const int channel = a.by_window.split(u), x = first - 1 + u;
    if (u >= columns || channel >= tile.channels) continue;
    const bool inside = static_cast<uint32_t>(x) < width;
    const auto value = [&](const T* at, int y) {
      return inside && static_cast<uint32_t>(y) < height ? static_cast<Acc>(*at) : Acc(0);
    };
    int y = spans[0].begin;
    auto position = static_cast<float>(y);
    const T* next = row_of(a.grad, tile.n, tile.c + channel, x, y + 1);
    Acc v[kTaps] = {0, value(next - a.grad.stride_h, y), value(next - 2 * a.grad.stride_h, y - 1)};
    Acc upper[kTaps], lower[kTaps] = {};
    Acc* to = sums + (channel * kTaps * a.window + u) * kTapColumn;
#pragma unroll 1
    for (int r = -1; r < kTapRows; ++r) {
      const RowSpan span = spans[r + 1];
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) {
        upper[dy] = lower[dy];
        lower[dy] = 0;
      }
#pragma unroll 1
      for (; y < span.end; ++y) {
        const Acc below = exact_sub(exact_mul(span.slope, position), span.low), above = 1 - below;
        position += 1.f;
        v[0] = value(next, y + 1);
        next += a.grad.stride_h;
#pragma unroll
        for (int dy = 0; dy < kTaps; ++dy) {
          upper[dy] += above * v[dy];
          lower[dy] += below * v[dy];
        }
        v[2] = v[1];
        v[1] = v[0];
      }
      if (r < 0) continue;
#pragma unroll
      for (int dy = 0; dy < kTaps; ++dy) to[dy * a.window * kTapColumn] = upper[dy];
      ++to;
    }
  }
  __syncthreads();
  constexpr int kParts = kTapRows / kTapRowsAtOnce;
  for (int i = threadIdx.x; i < a.tiling.channels * kTaps * kParts * a.tiling.width; i += blockDim.x) {
    int j = i;
    const int outer = a.by_width.split(j), row = outer % kParts * kTapRowsAtOnce, plane = outer / kParts;
    const int channel = plane / kTaps, dy = plane % kTaps;
    if (j >= tile.width || channel >= tile.channels || row >= tile.rows) continue;
    const int begin = starts[j] - first, middle = starts[j + 1] - first, end = starts[j + 2] - first;
    const Acc* from = sums + (plane * a.window + begin) * kTapColumn + row;
    Acc sum[kTaps][kTapRowsAtOnce] = {}, left[kTapRowsAtOnce], here[kTapRowsAtOnce];
#pragma unroll
    for (int q = 0; q < kTapRowsAtOnce; ++q) {
      left[q] = from[q];
      here[q] = from[kTapColumn + q];
    }
    for_each_reader<Acc>(lambdas, begin, middle, end, [&](Acc weight) {
#pragma unroll
      for (int q = 0; q < kTapRowsAtOnce; ++q) {
        const Acc right = from[2 * kTapColumn + q];
        sum[0][q] += weight * right;
        sum[1][q] += weight * here[q];
        sum[2][q] += weight * left[q];
        left[q] = here[q];
        here[q] = right;
      }
      from += kTapColumn;
    });
    T* to = place_in(a.out, tile.n, tile.c + channel, tile.x + j, tile.y + row) + dy * kTaps * a.next_tap;
#pragma unroll
    for (int q = 0; q < kTapRowsAtOnce; ++q, to += a.out.stride_h) {
      if (row + q >= tile.rows) break;
#pragma unroll
      for (int dx = 0; dx < kTaps; ++dx) to[dx * a.next_tap] = static_cast<T>(sum[dx][q]);
    }
  }
}

// Launches gather_taps, unless an input column has more readers than a block holds.
template <class T>
bool launch_gather_taps(const Tensor& on, const Map<const T>& grad, const Map<T>& planes) {
  constexpr int kThreads = kBlockThreads * 4 / sizeof(acc_t<T>);  // at most, by the shared memory for their sums
  GatherTapsArguments<T> a{};
  a.grad = grad;
  a.out = channels_of(planes, 0, grad.c);
  a.next_tap = grad.c * planes.stride_c;
  a.resize = Resize(planes.h, planes.w, grad.h, grad.w);
  const Axis& axis = a.resize.x;
  // Columns of the gradient that `inputs` columns of the planes gather.
  const auto window = [&](int64_t inputs) {
    const double most = axis.ratio > 0 ? (inputs + 1) / static_cast<double>(axis.ratio) + 2 : axis.out;
    return (most < axis.out ? static_cast<int64_t>(most) : axis.out) + kTaps - 1;
  };
  if (a.resize.copies || window(1) > kThreads) return false;
  int64_t width = 1, rows = kTapRows;
  while (width < planes.w && window(width + 1) <= kThreads) ++width;
  width = balanced(planes.w, width);
  a.window = static_cast<int>(window(width));
  const int64_t channels = std::clamp<int64_t>(kThreads / a.window, 1, grad.c);
  const auto cut = [&] { a.tiling = Tiling(planes.n, planes.h, planes.w, grad.c, rows, width, channels); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && rows > kTapRowsAtOnce; cut()) --rows;
  a.by_window = Divisor(a.window);
  a.by_width = Divisor(a.tiling.width);
  const int64_t values = channels * kTaps * a.window * kTapColumn;
  const auto bytes = static_cast<int>(values * sizeof(acc_t<T>) + 4 * (a.tiling.width + 2 + a.window));
  const auto threads = static_cast<int>(ceil_div(channels * a.window, 32) * 32);
  launch(on, a.tiling.blocks(), threads, bytes, gather_taps<T>, a);
  return true;
}

// Otherwise each row of taps gathers the gradient shifted by its distance along y, at the three shifts along x.
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
      if (!kInterleaved && launch_gather_taps<T>(grad, from, to)) return;
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
