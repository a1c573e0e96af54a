// The transforms of Winograd's convolution (winograd.h), a tile after the other, along its channels.
#include <torch/csrc/stable/library.h>

#include "../rows/simd.h"
#include "winograd.h"

namespace {

using namespace a2s;

// The tiles of a channels_last map.
template <class T>
class Tiles {
 public:
  Tiles(const Map<T>& map, int64_t dilation)
      : map_(map), rows_(tile_starts(map.h, dilation)), columns_(tile_starts(map.w, dilation)), dilation_(dilation) {}

  // The K x K pixels of a tile, beginning `before` steps before its first result. Null outside the map.
  template <int K>
  void pixels(int64_t tile, int64_t before, T* (&pixels)[K][K]) const {
    const auto rows = static_cast<int64_t>(rows_.size()), columns = static_cast<int64_t>(columns_.size());
    const int64_t n = tile / (rows * columns);
    const int64_t top = rows_[tile / columns % rows] - before * dilation_;
    const int64_t left = columns_[tile % columns] - before * dilation_;
    for (int j = 0; j < K; ++j) {
      for (int k = 0; k < K; ++k) {
        const int64_t y = top + j * dilation_, x = left + k * dilation_;
        const bool inside = y >= 0 && y < map_.h && x >= 0 && x < map_.w;
        pixels[j][k] = inside ? &map_.at(n, 0, y, x) : nullptr;
      }
    }
  }

 private:
  Map<T> map_;
  std::vector<int64_t> rows_, columns_;
  int64_t dilation_;
};

// The points of a range of tiles, (16, tiles, C).
template <class T>
class Points {
 public:
  Points(const Tensor& points, bool mirrored)
      : data_(static_cast<T*>(points.data_ptr())), tiles_(points.size(1)), channels_(points.size(2)),
        mirrored_(mirrored) {}

  int64_t tiles() const { return tiles_; }
  int64_t channels() const { return channels_; }

  void of_tile(int64_t tile, T* (&points)[kPoints][kPoints]) const {
    constexpr int mirror[kPoints] = {3, 1, 2, 0};
    for (int j = 0; j < kPoints; ++j) {
      for (int k = 0; k < kPoints; ++k) {
        const int point = mirrored_ ? kPoints * mirror[j] + mirror[k] : kPoints * j + k;
        points[j][k] = data_ + (point * tiles_ + tile) * channels_;
      }
    }
  }

 private:
  T* data_;
  int64_t tiles_, channels_;
  bool mirrored_;
};

// Applies a one-dimensional transform to all rows, then to all columns.
template <class V, size_t In, size_t Out, class Transform>
void along_both(const V (&in)[In][In], V (&out)[Out][Out], const Transform& transform) {
  V half[In][Out];
  for (size_t j = 0; j < In; ++j) transform(in[j], half[j]);
  for (size_t k = 0; k < Out; ++k) {
    V column[In], result[Out];
    for (size_t j = 0; j < In; ++j) column[j] = half[j][k];
    transform(column, result);
    for (size_t j = 0; j < Out; ++j) out[j][k] = result[j];
  }
}

// Transforms all channels of a tile and adds `bias`, unless it is null. A null pointer in `from` stands for zeros; a
// null pointer in `to` is skipped.
template <class Transform, class T, size_t In, size_t Out>
A2S_CLONES static void transform_tile(const T* const (&from)[In][In], const T* bias, int64_t channels,
                                      T* const (&to)[Out][Out]) {
  for_each_value<T>(channels, [&](int64_t c, auto kind) {
    using V = decltype(kind);
    V in[In][In], out[Out][Out];
    for (size_t j = 0; j < In; ++j) {
      for (size_t k = 0; k < In; ++k) in[j][k] = from[j][k] ? load_values<V>(from[j][k] + c) : V{};
    }
    along_both(in, out, Transform{});
    const V added = bias ? load_values<V>(bias + c) : V{};
    for (size_t j = 0; j < Out; ++j) {
      for (size_t k = 0; k < Out; ++k) {
        if (to[j][k]) store_values(to[j][k] + c, bias ? V(out[j][k] + added) : out[j][k]);
      }
    }
  });
}

// Calls work(tile) for all tiles, in parallel.
template <class Work>
void for_each_tile(int64_t tiles, int64_t channels, const Work& work) {
  torch::stable::parallel_for(0, tiles, std::max<int64_t>(1, 2048 / channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

template <class Body>
void dispatch_precise(const char* op, const Tensor& map, const Body& body) {
  if (map.scalar_type() == ScalarType::Float) return body(Type<float>{});
  check(map.scalar_type() == ScalarType::Double, "a2s::", op, ": maps must be float32 or float64.");
  body(Type<double>{});
}

// Transforms the K x K pixels of each tile, beginning `before` steps before its first result, to its points.
template <class Transform, int K>
void to_points(const char* op, const Tensor& map, int64_t before, int64_t dilation, int64_t first, bool mirrored,
               const Tensor& points) {
  check_points(op, map, points, dilation, first);
  dispatch_precise(op, map, [&](auto type) {
    using T = typename decltype(type)::type;
    const Tiles<const T> tiles(map_of<const T>(map), dilation);
    const Points<T> to(points, mirrored);
    for_each_tile(to.tiles(), to.channels(), [&](int64_t i) {
      const T* pixels[K][K];
      T* places[kPoints][kPoints];
      tiles.pixels(first + i, before, pixels);
      to.of_tile(i, places);
      transform_tile<Transform, T>(pixels, nullptr, to.channels(), places);
    });
  });
}

void winograd_input(const Tensor& x, int64_t dilation, int64_t first, bool mirrored, Tensor points) {
  to_points<InputTransform, kPoints>("winograd_input", x, 1, dilation, first, mirrored, points);
}

void winograd_output_grad(const Tensor& grad, int64_t dilation, int64_t first, Tensor points) {
  to_points<OutputGradTransform, kResults>("winograd_output_grad", grad, 0, dilation, first, false, points);
}

void winograd_output(const Tensor& points, const std::optional<Tensor>& bias, int64_t dilation, int64_t first,
                     bool mirrored, Tensor y) {
  check_points("winograd_output", y, points, dilation, first);
  check(!bias || (bias->dim() == 1 && bias->size(0) == y.size(1) && bias->is_contiguous() &&
                  bias->scalar_type() == y.scalar_type()),
        "a2s::winograd_output: bias must be contiguous, (", y.size(1), "), of the result's dtype.");
  dispatch_precise("winograd_output", y, [&](auto type) {
    using T = typename decltype(type)::type;
    const Tiles<T> tiles(map_of<T>(y), dilation);
    const Points<const T> from(points, mirrored);
    const T* added = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
    for_each_tile(from.tiles(), from.channels(), [&](int64_t i) {
      const T* places[kPoints][kPoints];
      T* pixels[kResults][kResults];
      from.of_tile(i, places);
      tiles.pixels(first + i, 0, pixels);
      transform_tile<OutputTransform, T>(places, added, from.channels(), pixels);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("winograd_input", TORCH_BOX(&winograd_input));
  m.impl("winograd_output", TORCH_BOX(&winograd_output));
  m.impl("winograd_output_grad", TORCH_BOX(&winograd_output_grad));
}
