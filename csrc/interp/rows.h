// CPU loops over maps, a row at a time. In a planar map a row holds one channel and every channel is a plane; in an
// interleaved (channels_last) one a row holds all channels of its pixels and an image is one plane. The inner loops run
// over values that lie side by side in both layouts. Rows that are read several times are converted to the accumulation
// type beforehand, others where they are used.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../support/simd.h"
#include "interp.h"

namespace a2s {

template <class From, class To>
A2S_CLONES void convert(const From* from, int64_t count, To* to) {
  A2S_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

// Row `y` of a plane is `width` pixels of `lanes` values.
template <class T>
class Rows {
 public:
  using Acc = acc_t<T>;

  Rows(const Map<T>& map, bool interleaved)
      : map_(map), lanes_(interleaved ? map.c : 1), planes_per_image_(map.c / lanes_),
        adjacent_(lanes_ > 1 && map.stride_c == 1),
        contiguous_(map.stride_w == lanes_ && (lanes_ == 1 || adjacent_)) {}

  int64_t lanes() const { return lanes_; }
  int64_t planes_per_image() const { return planes_per_image_; }
  int64_t planes() const { return map_.n * planes_per_image_; }
  int64_t height() const { return map_.h; }
  int64_t values() const { return map_.w * lanes_; }

  // The row itself where it can be worked on in place, else `buffer`.
  template <class To>
  auto in_place(int64_t plane, int64_t y, To* buffer) const {
    if constexpr (std::is_same_v<std::remove_const_t<T>, To>) return contiguous_ ? start(plane, y) : buffer;
    else return buffer;
  }

  template <class To>
  void load(int64_t plane, int64_t y, To* row) const {
    const T* first = start(plane, y);
    if (contiguous_) return convert(first, values(), row);
    for (int64_t x = 0; x < map_.w; ++x, row += lanes_, first += map_.stride_w) {
      if (adjacent_) convert(first, lanes_, row);
      else for (int64_t l = 0; l < lanes_; ++l) row[l] = static_cast<To>(first[l * map_.stride_c]);
    }
  }

  // The row as it lies in memory if possible, else a copy in `buffer`.
  template <class To>
  const To* read(int64_t plane, int64_t y, To* buffer) const {
    const To* row = in_place(plane, y, buffer);
    if (row == buffer) load(plane, y, buffer);
    return row;
  }

  // `row` is what in_place() gave.
  template <class From>
  void store(int64_t plane, int64_t y, const From* row) const {
    T* first = start(plane, y);
    if (static_cast<const void*>(first) == static_cast<const void*>(row)) return;
    if (contiguous_) return convert(row, values(), first);
    for (int64_t x = 0; x < map_.w; ++x, row += lanes_, first += map_.stride_w) {
      if (adjacent_) convert(row, lanes_, first);
      else for (int64_t l = 0; l < lanes_; ++l) first[l * map_.stride_c] = static_cast<T>(row[l]);
    }
  }

  T* start(int64_t plane, int64_t y) const {
    return &map_.at(plane / planes_per_image_, plane % planes_per_image_, y, 0);
  }
  // Values between the end of a pixel and the next.
  int64_t gap() const { return map_.stride_w - lanes_; }

 private:

  Map<T> map_;
  int64_t lanes_, planes_per_image_;
  bool adjacent_, contiguous_;  // a pixel's lanes; the whole row
};

template <class T>
std::optional<Rows<const T>> optional_rows(const std::optional<Tensor>& tensor, bool interleaved) {
  if (!tensor) return std::nullopt;
  return Rows<const T>(map_of<const T>(*tensor), interleaved);
}

// Two rows that were worked out before, so that consecutive result rows, which read the same source rows, find them.
template <class Acc>
class KeptRows {
 public:
  explicit KeptRows(int64_t values) : rows_{{-1, -1, std::vector<Acc>(values)}, {-1, -1, std::vector<Acc>(values)}} {}

  // Neighbouring rows have places of their own.
  template <class Fill>
  const Acc* row(int64_t plane, int64_t y, const Fill& fill) {
    Row& row = rows_[y & 1];
    if (row.plane != plane || row.y != y) {
      fill(row.values.data());
      row.plane = plane;
      row.y = y;
    }
    return row.values.data();
  }

 private:
  struct Row {
    int64_t plane, y;
    std::vector<Acc> values;
  };
  Row rows_[2];
};

// The columns of a planar map that is resized along its width.
template <class Acc>
struct Columns {
  using Position = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;  // as a shuffle of Acc takes it

  std::vector<Position> low;
  std::vector<Position> local;  // low relative to that of the first of eight; empty where that passes seven
  std::vector<Acc> lambda;

  explicit Columns(const Axis& axis) : low(axis.out), lambda(axis.out) {
    for (int64_t x = 0; x < axis.out; ++x) {
      const Tap tap = axis.tap(x);
      low[x] = static_cast<Position>(tap.low);
      lambda[x] = tap.lambda;
    }
    local = low;
    for (int64_t x = 0; x < axis.out; ++x) local[x] -= low[x / kLanes * kLanes];
    if (*std::max_element(local.begin(), local.end()) >= kLanes) local.clear();
  }
};

// Resizes `source` along its width. It repeats its last pixel once, and eight more values can be read.
template <class Acc>
A2S_CLONES void widen(const Columns<Acc>& columns, const Acc* source, Acc* out) {
  const auto width = static_cast<int64_t>(columns.low.size());
  const auto* low = columns.low.data();
  const Acc* lambda = columns.lambda.data();
  int64_t x = 0;
#if defined(__GNUC__) && !defined(__clang__)
  if (!columns.local.empty()) {
    for (; x + kLanes <= width; x += kLanes) {
      const Lanes<Acc> l = load_lanes(lambda + x);
      const auto local = load_lanes(&columns.local[x]);
      store_values(out + x, (1 - l) * __builtin_shuffle(load_lanes(source + low[x]), local) +
                              l * __builtin_shuffle(load_lanes(source + low[x] + 1), local));
    }
  }
#endif
  for (; x < width; ++x) out[x] = (1 - lambda[x]) * source[low[x]] + lambda[x] * source[low[x] + 1];
}

// A row of Interp's result before it is worked out: between two source rows of its own width.
template <class Acc>
struct PlanarRow {
  const Acc *low, *high;
  Acc lambda;

  Acc at(int64_t x) const { return (1 - lambda) * low[x] + lambda * high[x]; }
};

// The rows of Interp's result for a planar map.
template <class T>
class PlanarRows {
 public:
  using Acc = acc_t<T>;

  PlanarRows(const Map<const T>& map, const Resize& resize)
      : in_(map, false), resize_(resize), columns_(resize.x), source_(map.w + 1 + kLanes),
        widened_(resize.copies ? 0 : resize.x.out), zeros_(resize.copies ? map.w : 0) {}

  // Valid until the next call. Of a map that is copied, `low` is the row.
  PlanarRow<Acc> row(int64_t plane, int64_t y) {
    if (resize_.copies) return {in_.read(plane, y, source_.data()), zeros_.data(), 0};
    const Tap tap = resize_.y.tap(y);
    const Acc* low = widened(plane, tap.low);
    return {low, widened(plane, tap.high), static_cast<Acc>(tap.lambda)};
  }

 private:
  const Acc* widened(int64_t plane, int64_t y) {
    return widened_.row(plane, y, [&](Acc* row) {
      in_.load(plane, y, source_.data());
      source_[in_.values()] = source_[in_.values() - 1];
      widen(columns_, source_.data(), row);
    });
  }

  Rows<const T> in_;
  Resize resize_;
  Columns<Acc> columns_;
  std::vector<Acc> source_;
  KeptRows<Acc> widened_;
  std::vector<Acc> zeros_;
};

// The four neighbours of one pixel, whose values follow each other.
template <class Acc>
struct Quad {
  // How far ahead memory is asked for: small maps have a row or two to a page, and a processor does not look beyond it.
  static constexpr int64_t kAhead = 768 / sizeof(Acc);

  const Acc *a00, *a01, *a10, *a11;
  Acc w00, w01, w10, w11;

  // V as in load_values. Copied: the pixel is a copy of its first neighbour.
  template <class V, bool Copied = false>
  V at(int64_t lane) const {
    __builtin_prefetch((Copied ? a00 : a11) + lane + kAhead);
    const V first = load_values<V>(a00 + lane);
    if constexpr (Copied) return first;
    return (w00 * first + w01 * load_values<V>(a01 + lane)) +
           (w10 * load_values<V>(a10 + lane) + w11 * load_values<V>(a11 + lane));
  }
};

// A row of Interp's result before it is worked out, pixels with all their channels.
template <class Acc>
struct InterleavedRow {
  const Acc *low, *high, *zeros;  // zeros is null unless the map is copied
  Acc lambda;
  const Tap* columns;
  int64_t lanes;

  Quad<Acc> at(int64_t x) const {
    if (zeros) return {low + x * lanes, zeros, zeros, zeros, 1, 0, 0, 0};
    const Tap& tap = columns[x];
    const Acc lx = tap.lambda;
    return {low + tap.low * lanes,   low + tap.high * lanes, high + tap.low * lanes, high + tap.high * lanes,
            (1 - lambda) * (1 - lx), (1 - lambda) * lx,      lambda * (1 - lx),      lambda * lx};
  }
};

// The rows of Interp's result for an interleaved map.
template <class T>
class InterleavedRows {
 public:
  using Acc = acc_t<T>;

  InterleavedRows(const Map<const T>& map, const Resize& resize)
      : in_(map, true), resize_(resize), source_(in_.values()), zeros_(resize.copies ? map.c : 0) {
    if (resize.copies) return;
    for (int64_t x = 0; x < resize.x.out; ++x) columns_.push_back(resize.x.tap(x));
  }

  // Valid until the next call. Of a map that is copied, `low` is the row.
  InterleavedRow<Acc> row(int64_t plane, int64_t y) {
    if (resize_.copies) return {source(plane, y), nullptr, zeros_.data(), 0, nullptr, in_.lanes()};
    const Tap tap = resize_.y.tap(y);
    const Acc* low = source(plane, tap.low);
    return {low, source(plane, tap.high), nullptr, static_cast<Acc>(tap.lambda), columns_.data(), in_.lanes()};
  }

 private:
  const Acc* source(int64_t plane, int64_t y) {
    if (const Acc* row = in_.in_place(plane, y, static_cast<Acc*>(nullptr))) return row;
    return source_.row(plane, y, [&](Acc* row) { in_.load(plane, y, row); });
  }

  Rows<const T> in_;
  Resize resize_;
  std::vector<Tap> columns_;
  KeptRows<Acc> source_;
  std::vector<Acc> zeros_;
};

// The values of S maps at a lane of a pixel, or at eight. FirstCopies: the first map is not resized.
template <bool FirstCopies, class V, class Acc, size_t S>
void values_at(const std::array<Quad<Acc>, S>& quads, int64_t lane, V (&v)[S]) {
  v[0] = quads[0].template at<V, FirstCopies>(lane);
  for (size_t s = 1; s < S; ++s) v[s] = quads[s].template at<V>(lane);
}

// Calls op.pixel(x) at each pixel of a row, and what that gives as value(i, v) for every value i of the row, or for eight
// at once: v[s] is the value of map s. FirstCopies: the first map is not resized.
template <bool FirstCopies, class Acc, size_t S, class Op>
A2S_CLONES void resize_row(const std::array<PlanarRow<Acc>, S> rows, int64_t width, const Op op) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    Acc v[S];
    for (size_t s = 0; s < S; ++s) v[s] = FirstCopies && s == 0 ? rows[s].low[x] : rows[s].at(x);
    op.pixel(x)(x, v);
  }
}

template <bool FirstCopies, class Acc, size_t S, class Op>
A2S_CLONES void resize_row(const std::array<InterleavedRow<Acc>, S> rows, int64_t width, const Op op) {
  const int64_t lanes = rows[0].lanes;
  for (int64_t x = 0; x < width; ++x) {
    std::array<Quad<Acc>, S> quads;
    for (size_t s = 0; s < S; ++s) quads[s] = rows[s].at(x);
    const auto value = op.pixel(x);
    for_each_value<Acc>(lanes, [&](int64_t l, auto kind) {
      decltype(kind) v[S];
      values_at<FirstCopies>(quads, l, v);
      value(x * lanes + l, v);
    });
  }
}

// The rows of S maps resized to one grid.
template <class T, int S>
class ScaleRows {
 public:
  using Acc = acc_t<T>;

  ScaleRows(const ScaleSet<T, S>& scales, bool interleaved)
      : first_copies_(scales.resize[0].copies), width_(scales.resize[0].x.out) {
    for (int s = 0; s < S; ++s) {
      if (interleaved) interleaved_.emplace_back(scales.map[s], scales.resize[s]);
      else planar_.emplace_back(scales.map[s], scales.resize[s]);
    }
  }

  // Calls body(FirstCopies, rows, width) with rows y of a plane, planar or interleaved.
  template <class Body>
  void visit(int64_t plane, int64_t y, const Body& body) {
    const auto call = [&](const auto& rows) {
      if (first_copies_) body(std::true_type{}, rows, width_);
      else body(std::false_type{}, rows, width_);
    };
    if (planar_.empty()) call(rows_of(interleaved_, plane, y));
    else call(rows_of(planar_, plane, y));
  }

  // Does `op` to row y of a plane.
  template <class Op>
  void row(int64_t plane, int64_t y, const Op& op) {
    visit(plane, y, [&](auto first_copies, const auto& rows, int64_t width) {
      resize_row<decltype(first_copies)::value>(rows, width, op);
    });
  }

 private:
  template <class ScaleRow>
  static auto rows_of(std::vector<ScaleRow>& scales, int64_t plane, int64_t y) {
    std::array<decltype(scales[0].row(plane, y)), S> rows;
    for (int s = 0; s < S; ++s) rows[s] = scales[s].row(plane, y);
    return rows;
  }

  bool first_copies_;
  int64_t width_;
  std::vector<PlanarRows<T>> planar_;
  std::vector<InterleavedRows<T>> interleaved_;
};

// Calls work(first, end) for parts of the rows of a map, in parallel, each worth a thread.
template <class Work>
void for_each_part(int64_t rows, int64_t values_per_row, const Work& work) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / values_per_row), work);
}

}  // namespace a2s
