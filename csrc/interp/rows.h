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

// How far ahead memory is asked for: small maps have a few rows to a page, and a processor does not look beyond it.
constexpr int64_t kAheadBytes = 768;

inline void ask_for(const void* memory, int64_t bytes) {
  constexpr int64_t cache_line = 64;
  for (int64_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(static_cast<const char*>(memory) + i);
}

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
    return in_place(start(plane, y), buffer);
  }

  template <class To>
  void load(int64_t plane, int64_t y, To* row) const {
    load(start(plane, y), row);
  }

  // The row as it lies in memory if possible, else a copy in `buffer`.
  template <class To>
  const To* read(int64_t plane, int64_t y, To* buffer) const {
    return read(start(plane, y), buffer);
  }

  // The same of the row that begins at `first`.
  template <class To>
  const To* read(T* first, To* buffer) const {
    const To* row = in_place(first, buffer);
    if (row == buffer) load(first, buffer);
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
  // Values from the start of a row to that of the next.
  int64_t row_stride() const { return map_.stride_h; }

 private:
  template <class To>
  auto in_place(T* first, To* buffer) const {
    if constexpr (std::is_same_v<std::remove_const_t<T>, To>) return contiguous_ ? first : buffer;
    else return buffer;
  }

  template <class To>
  void load(const T* first, To* row) const {
    if (contiguous_) return convert(first, values(), row);
    for (int64_t x = 0; x < map_.w; ++x, row += lanes_, first += map_.stride_w) {
      if (adjacent_) convert(first, lanes_, row);
      else for (int64_t l = 0; l < lanes_; ++l) row[l] = static_cast<To>(first[l * map_.stride_c]);
    }
  }

  Map<T> map_;
  int64_t lanes_, planes_per_image_;
  bool adjacent_, contiguous_;  // a pixel's lanes; the whole row
};

template <class T>
std::optional<Rows<const T>> optional_rows(const std::optional<Tensor>& tensor, bool interleaved) {
  if (!tensor) return std::nullopt;
  return Rows<const T>(map_of<const T>(*tensor), interleaved);
}

// Values between two rows of values.
template <class T>
struct Between {
  const T *low, *high;
  acc_t<T> lambda;

  // V as in load_values.
  template <class V>
  V at(int64_t i) const {
    return lerp(load_values<V>(low + i), load_values<V>(high + i), lambda);
  }
};

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

// Calls work(first, end) for parts of the rows of a map, in parallel, each worth a thread.
template <class Work>
void for_each_part(int64_t rows, int64_t values_per_row, const Work& work) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / values_per_row), work);
}

}  // namespace a2s
