// The CPU row engine. On a CPU every operator is a loop over rows; this folder reads, resizes and writes the rows.
//
// A map is an (N, C, H, W) tensor with any strides. It consists of planes of H rows, and a row consists of W pixels:
//
//   layout                        a plane is                a pixel has
//   planar (contiguous)           one channel of an image   1 value
//   interleaved (channels_last)   a whole image             C values, one per channel
//
// In the code `channels` is the number of values in a pixel: 1 or C. The inner loops run along a row, eight adjacent
// values at a time (simd.h). A row whose values are not adjacent in memory is copied first.
//
// The parts:
//
//   Rows              reads and writes the rows of a map                   rows.h
//   PlanarRows        the rows of a planar map resized by Interp           planar_rows.h
//   InterleavedRows   the rows of an interleaved map resized by Interp     interleaved_rows.h
//   ScaleRows         the rows of several maps, all resized to one size    scale_rows.h
//   GatheredRows      the rows of a map's gradient, by Interp's adjoint    gather_rows.h
//
// Forward, an operator shares the rows of its result among threads (for_each_part). For each row it calls
// ScaleRows::row<S>(plane, y, op), where `op` is the operator's own arithmetic. ScaleRows gets row y of every map from
// PlanarRows or InterleavedRows. They do not compute that row; they return the source rows above and below it, and the
// weights. ScaleRows then walks along the row. It interpolates the value v[s] of each map s and calls op(i, v) for
// value i. The op combines the values and stores the result. So a resized map is never in memory.
//
// Backward, an operator calls gather_rows for each map. Row i of a map's gradient is a weighted sum of those rows of
// the result's gradient that were interpolated from row i. GatheredRows computes this sum, and then the same along the
// row.
//
// Example: Interp of one channel x from 2x2 to 3x3. Along either axis the ratio is (2 - 1) / (3 - 1) = 0.5.
//
//   x   0 2      y   0 1 2
//       4 6          2 3 4
//                    4 5 6
//
// Row 1 of y has position 0.5 * 1 = 0.5 in x: halfway between rows 0 and 1, so lambda = 0.5. PlanarRows resizes both
// along their width, to (0 1 2) and (4 5 6). It caches them, because the other rows of y read them as well, and returns
// Lerp{(0 1 2), (4 5 6), 0.5}. ScaleRows evaluates it to 2, 3 and 4, and the op of interp stores these values.
//
// Backward, let the gradient of y be 1 everywhere. Rows 0 and 1 of y were interpolated from row 0 of x, with weights 1
// and 0.5. GatheredRows adds them up to (1.5 1.5 1.5). Columns 0 and 1 were interpolated from column 0, with the same
// weights. So the gradient of x[0, 0] is 1 * 1.5 + 0.5 * 1.5 = 2.25.
//
// Two rules keep the compiler's work small. Only the loops along a row are compiled for each number of maps S; the code
// around them takes S at run time. Double, which serves to check gradients, has no loops of its own: it takes one value
// at a time, and the rows of interleaved maps are copied and taken as planar. rows.cpp holds the code that depends on
// no operator.
//
// Sums are in acc_t: double for double, float for all other dtypes. Their order depends neither on the number of
// threads nor on the processor, so the same inputs always give the same bits.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../interp/interp.h"
#include "bfloat16.h"
#include "simd.h"

namespace a2s {

// Prefetch distance, in bytes, ahead of the load. The processor's own prefetcher stops at the end of a page, and a
// small map has only a few rows to a page.
constexpr int64_t kPrefetchBytes = 768;

inline void prefetch(const void* memory, int64_t bytes) {
  constexpr int64_t cache_line = 64;
  for (int64_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(static_cast<const char*>(memory) + i);
}

// to[i] = from[i]
template <class From, class To>
void convert(const From* from, int64_t count, To* to);

// Whether interleaved maps have loops of their own.
template <class T>
constexpr bool kHasInterleavedLoops = !std::is_same_v<std::remove_const_t<T>, double>;

// Whether the loops take a map, and all maps merged into it, as interleaved.
template <class T>
bool takes_interleaved(const Map<T>& map) {
  return kHasInterleavedLoops<T> && map.channels_last;
}

// The rows of a map.
template <class T>
class Rows {
 public:
  using Acc = acc_t<T>;

  Rows(const Map<T>& map, bool interleaved)
      : map_(map), channels_(interleaved ? map.c : 1), planes_per_image_(map.c / channels_),
        pixel_adjacent_(channels_ > 1 && map.stride_c == 1),
        row_adjacent_(map.stride_w == channels_ && (channels_ == 1 || pixel_adjacent_)) {}

  // Values in a pixel of a row.
  int64_t channels() const { return channels_; }
  int64_t planes_per_image() const { return planes_per_image_; }
  int64_t planes() const { return map_.n * planes_per_image_; }
  // Values in a row.
  int64_t values() const { return map_.w * channels_; }

  // The first value of a row.
  T* start(int64_t plane, int64_t y) const {
    return &map_.at(plane / planes_per_image_, plane % planes_per_image_, y, 0);
  }
  // Values in memory between the end of a pixel and the start of the next.
  int64_t gap() const { return map_.stride_w - channels_; }
  // Values in memory from the start of a row to the start of the next.
  int64_t row_stride() const { return map_.stride_h; }

  // The row in the map's memory if its values are adjacent and of type To, else `buffer`.
  template <class To>
  auto in_place(int64_t plane, int64_t y, To* buffer) const {
    return in_place(start(plane, y), buffer);
  }

  // Copies the row to `row`.
  template <class To>
  void load(int64_t plane, int64_t y, To* row) const {
    load(start(plane, y), row);
  }

  // The row in place if possible, else a copy in `buffer`.
  template <class To>
  const To* read(int64_t plane, int64_t y, To* buffer) const {
    return read(start(plane, y), buffer);
  }

  // The same for the row whose first value is `first`.
  template <class To>
  const To* read(T* first, To* buffer) const {
    const To* row = in_place(first, buffer);
    if (row == buffer) load(first, buffer);
    return row;
  }

  // Writes to the map the row that in_place() returned, unless it is the map's memory.
  template <class From>
  void store(int64_t plane, int64_t y, const From* row) const {
    T* first = start(plane, y);
    if (static_cast<const void*>(first) == static_cast<const void*>(row)) return;
    if (row_adjacent_) return convert(row, values(), first);
    for (int64_t x = 0; x < map_.w; ++x, row += channels_, first += map_.stride_w) {
      if (pixel_adjacent_) convert(row, channels_, first);
      else for (int64_t c = 0; c < channels_; ++c) first[c * map_.stride_c] = static_cast<T>(row[c]);
    }
  }

 private:
  template <class To>
  auto in_place(T* first, To* buffer) const {
    if constexpr (std::is_same_v<std::remove_const_t<T>, To>) return row_adjacent_ ? first : buffer;
    else return buffer;
  }

  template <class To>
  void load(const T* first, To* row) const {
    if (row_adjacent_) return convert(first, values(), row);
    for (int64_t x = 0; x < map_.w; ++x, row += channels_, first += map_.stride_w) {
      if (pixel_adjacent_) convert(first, channels_, row);
      else for (int64_t c = 0; c < channels_; ++c) row[c] = static_cast<To>(first[c * map_.stride_c]);
    }
  }

  Map<T> map_;
  int64_t channels_, planes_per_image_;
  bool pixel_adjacent_, row_adjacent_;  // the values of a pixel; of the whole row
};

template <class T>
std::optional<Rows<const T>> optional_rows(const std::optional<Tensor>& tensor, bool interleaved) {
  if (!tensor) return std::nullopt;
  return Rows<const T>(map_of<const T>(*tensor), interleaved);
}

// Linear interpolation between two arrays of values.
template <class T>
struct Lerp {
  const T *low, *high;
  acc_t<T> lambda;

  // V as in load_values.
  template <class V>
  V at(int64_t i) const {
    return lerp(load_values<V>(low + i), load_values<V>(high + i), lambda);
  }
};

// out[i] = rows.at(i)
template <class T>
void lerp_row(const Lerp<T>& rows, int64_t count, acc_t<T>* out);

// A cache of two adjacent rows of a plane. Consecutive rows of a result read the same source rows.
template <class Acc>
class RowCache {
 public:
  explicit RowCache(int64_t values) : entries_{Entry(values), Entry(values)} {}

  // Row y of a plane. Calls fill(row) if the row is not in the cache.
  template <class Fill>
  const Acc* row(int64_t plane, int64_t y, const Fill& fill) {
    Entry& entry = entries_[y & 1];
    if (entry.plane != plane || entry.y != y) {
      fill(entry.values.data());
      entry.plane = plane;
      entry.y = y;
    }
    return entry.values.data();
  }

 private:
  struct Entry {
    int64_t plane = -1, y = -1;
    std::vector<Acc> values;

    explicit Entry(int64_t count) : values(count) {}
  };
  Entry entries_[2];
};

// Calls work(begin, end) on ranges that cover the rows [0, rows), in parallel. A range is large enough to be worth a
// thread.
template <class Work>
void for_each_part(int64_t rows, int64_t values_per_row, const Work& work) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / values_per_row), work);
}

}  // namespace a2s
