// The rows of Interp's result for an interleaved map, whose pixels are read with all channels. Where values are
// converted when they are read, two source rows are mixed to one first, so that each value is converted once for several
// pixels. Where they are not, each pixel reads its four neighbours: a mixed row of many channels would not stay in the
// nearest cache.
#pragma once

#include "rows.h"

namespace a2s {

// The four neighbours of one pixel, whose values follow each other.
template <class Acc>
struct Quad {
  const Acc *a00, *a01, *a10, *a11;
  Acc w00, w01, w10, w11;

  // V as in load_values.
  template <class V>
  V at(int64_t lane) const {
    __builtin_prefetch(a11 + lane + kAheadBytes / sizeof(Acc));
    return (w00 * load_values<V>(a00 + lane) + w01 * load_values<V>(a01 + lane)) +
           (w10 * load_values<V>(a10 + lane) + w11 * load_values<V>(a11 + lane));
  }
};

// A row of Interp's result before it is worked out, between two source rows.
template <class Acc>
struct QuadRow {
  const Acc *low, *high;
  Acc lambda;
  const Tap* columns;
  int64_t lanes;
  const Acc* zeros;  // null unless the map is copied: then `low` is the row

  Quad<Acc> at(int64_t x) const {
    if (zeros) return {low + x * lanes, zeros, zeros, zeros, 1, 0, 0, 0};
    const Tap& tap = columns[x];
    const Acc lx = tap.lambda;
    return {low + tap.low * lanes,   low + tap.high * lanes, high + tap.low * lanes, high + tap.high * lanes,
            (1 - lambda) * (1 - lx), (1 - lambda) * lx,      lambda * (1 - lx),      lambda * lx};
  }
};

// The same, of two rows that are mixed already.
template <class Acc>
struct MixedRow {
  const Acc* mixed;
  const Tap* columns;
  int64_t lanes;
  const Acc* zeros;  // null unless the map is copied: then `mixed` is the row

  Between<Acc> at(int64_t x) const {
    if (zeros) return {mixed + x * lanes, zeros, 0};
    const Tap& tap = columns[x];
    return {mixed + tap.low * lanes, mixed + tap.high * lanes, static_cast<Acc>(tap.lambda)};
  }
};

template <class T>
A2S_CLONES void mix(const Between<T> rows, int64_t count, acc_t<T>* out) {
  for_each_value<acc_t<T>>(count, [&](int64_t i, auto kind) {
    __builtin_prefetch(rows.high + i + kAheadBytes / sizeof(T));
    store_values(out + i, rows.template at<decltype(kind)>(i));
  });
}

// The rows of Interp's result for an interleaved map.
template <class T>
class InterleavedRows {
 public:
  using Acc = acc_t<T>;
  static constexpr bool kMixes = !std::is_same_v<T, Acc>;
  using Row = std::conditional_t<kMixes, MixedRow<Acc>, QuadRow<Acc>>;

  InterleavedRows(const Map<const T>& map, const Resize& resize)
      : in_(map, true), resize_(resize), source_(in_.values()), mixed_(kMixes ? in_.values() : 0),
        zeros_(resize.copies ? map.c : 0) {
    if (resize.copies) return;
    for (int64_t x = 0; x < resize.x.out; ++x) {
      const Tap tap = resize.x.tap(x);
      if (runs_.empty() || tap.low > runs_.back().end) runs_.push_back({tap.low, tap.low});
      runs_.back().end = tap.high + 1;
      columns_.push_back(tap);
    }
  }

  // Valid until the next call.
  Row row(int64_t plane, int64_t y) {
    if constexpr (kMixes) {
      if (resize_.copies) convert(copy(plane, y), in_.values(), mixed_.data());
      else mix_rows(plane, resize_.y.tap(y));
      return {mixed_.data(), columns_.data(), in_.lanes(), zeros()};
    } else {
      if (resize_.copies) return {copy(plane, y), nullptr, 0, nullptr, in_.lanes(), zeros()};
      const Tap tap = resize_.y.tap(y);
      const T* low = source(plane, tap.low);
      return {low, source(plane, tap.high), tap.lambda, columns_.data(), in_.lanes(), zeros()};
    }
  }

  // A row of a map that is copied, as it lies in memory if possible. Valid until the next call.
  const T* copy(int64_t plane, int64_t y) { return source(plane, y); }

 private:
  struct Run {
    int64_t first, end;
  };

  const T* source(int64_t plane, int64_t y) {
    if (const T* row = in_.in_place(plane, y, static_cast<T*>(nullptr))) return row;
    return source_.row(plane, y, [&](T* row) { in_.load(plane, y, row); });
  }

  void mix_rows(int64_t plane, const Tap& tap) {
    const T* low = source(plane, tap.low);
    const T* high = source(plane, tap.high);
    for (const Run& run : runs_) {
      const int64_t first = run.first * in_.lanes(), count = (run.end - run.first) * in_.lanes();
      mix(Between<T>{low + first, high + first, static_cast<Acc>(tap.lambda)}, count, &mixed_[first]);
    }
  }

  const Acc* zeros() const { return resize_.copies ? zeros_.data() : nullptr; }

  Rows<const T> in_;
  Resize resize_;
  std::vector<Tap> columns_;
  std::vector<Run> runs_;  // of source columns that are read
  KeptRows<T> source_;
  std::vector<Acc> mixed_, zeros_;
};

}  // namespace a2s
