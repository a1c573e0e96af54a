// The rows of an interleaved map resized by Interp. A pixel is interpolated between its four neighbours, with all
// channels.
//
// float and double read the four neighbours of each pixel from the source rows. Other types first blend the two source
// rows into one, so that a value is converted once for several pixels. Blending is slower for float: a blended row of
// many channels does not fit in L1.
#pragma once

#include "rows.h"

namespace a2s {

// A pixel between four pixels of an interleaved map.
template <class Acc>
struct BilinearPixel {
  const Acc *a00, *a01, *a10, *a11;
  Acc w00, w01, w10, w11;

  // V as in load_values.
  template <class V>
  V at(int64_t channel) const {
    __builtin_prefetch(a11 + channel + kPrefetchBytes / sizeof(Acc));
    return (w00 * load_values<V>(a00 + channel) + w01 * load_values<V>(a01 + channel)) +
           (w10 * load_values<V>(a10 + channel) + w11 * load_values<V>(a11 + channel));
  }
};

// A row between two source rows. at(x) is its pixel x.
template <class Acc>
struct BilinearRow {
  const Acc *low, *high;
  Acc lambda;
  const Tap* columns;
  int64_t channels;
  const Acc* zeros;  // null, unless the map keeps its size and `low` is the row itself

  BilinearPixel<Acc> at(int64_t x) const {
    if (zeros) return {low + x * channels, zeros, zeros, zeros, 1, 0, 0, 0};
    const Tap& tap = columns[x];
    const Acc lx = tap.lambda;
    return {low + tap.low * channels, low + tap.high * channels, high + tap.low * channels, high + tap.high * channels,
            (1 - lambda) * (1 - lx),  (1 - lambda) * lx,         lambda * (1 - lx),         lambda * lx};
  }
};

// A row whose two source rows are blended already.
template <class Acc>
struct BlendedRow {
  const Acc* blended;
  const Tap* columns;
  int64_t channels;
  const Acc* zeros;  // null, unless the map keeps its size and `blended` is the row itself

  Lerp<Acc> at(int64_t x) const {
    if (zeros) return {blended + x * channels, zeros, 0};
    const Tap& tap = columns[x];
    return {blended + tap.low * channels, blended + tap.high * channels, static_cast<Acc>(tap.lambda)};
  }
};

// The rows of an interleaved map resized by Interp.
template <class T>
class InterleavedRows {
 public:
  using Acc = acc_t<T>;
  static constexpr bool kBlends = !std::is_same_v<T, Acc>;
  using Row = std::conditional_t<kBlends, BlendedRow<Acc>, BilinearRow<Acc>>;

  InterleavedRows(const Map<const T>& map, const Resize& resize);

  // Row y of the resized plane. Valid until the next call.
  Row row(int64_t plane, int64_t y) {
    if constexpr (kBlends) {
      if (resize_.copies) convert(copy(plane, y), in_.values(), blended_.data());
      else blend_rows(plane, resize_.y.tap(y));
      return {blended_.data(), columns_.data(), in_.channels(), zeros()};
    } else {
      if (resize_.copies) return {copy(plane, y), nullptr, 0, nullptr, in_.channels(), zeros()};
      const Tap tap = resize_.y.tap(y);
      const T* low = source(plane, tap.low);
      return {low, source(plane, tap.high), tap.lambda, columns_.data(), in_.channels(), zeros()};
    }
  }

  // Row y of a map that keeps its size, in place if possible. Valid until the next call.
  const T* copy(int64_t plane, int64_t y) { return source(plane, y); }

 private:
  // Source columns [begin, end).
  struct Run {
    int64_t begin, end;
  };

  const T* source(int64_t plane, int64_t y) {
    if (const T* row = in_.in_place(plane, y, static_cast<T*>(nullptr))) return row;
    return source_.row(plane, y, [&](T* row) { in_.load(plane, y, row); });
  }

  void blend_rows(int64_t plane, const Tap& tap) {
    const T* low = source(plane, tap.low);
    const T* high = source(plane, tap.high);
    for (const Run& run : runs_) {
      const int64_t first = run.begin * in_.channels(), count = (run.end - run.begin) * in_.channels();
      lerp_row(Lerp<T>{low + first, high + first, static_cast<Acc>(tap.lambda)}, count, &blended_[first]);
    }
  }

  const Acc* zeros() const { return resize_.copies ? zeros_.data() : nullptr; }

  Rows<const T> in_;
  Resize resize_;
  std::vector<Tap> columns_;
  std::vector<Run> runs_;  // the source columns that are read
  RowCache<T> source_;
  std::vector<Acc> blended_, zeros_;
};

}  // namespace a2s
