// The rows of Interp's result for an interleaved map, whose pixels are read at their four neighbours with all channels.
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
      : in_(map, true), resize_(resize), source_(in_.values()), copied_(resize.copies ? in_.values() : 0),
        zeros_(resize.copies ? map.c : 0) {
    if (resize.copies) return;
    for (int64_t x = 0; x < resize.x.out; ++x) columns_.push_back(resize.x.tap(x));
  }

  // Valid until the next call.
  InterleavedRow<Acc> row(int64_t plane, int64_t y) {
    if (resize_.copies) return {source(plane, y), nullptr, zeros_.data(), 0, nullptr, in_.lanes()};
    const Tap tap = resize_.y.tap(y);
    const Acc* low = source(plane, tap.low);
    return {low, source(plane, tap.high), nullptr, static_cast<Acc>(tap.lambda), columns_.data(), in_.lanes()};
  }

  // A row of a map that is copied, as it lies in memory if possible. Valid until the next call.
  const T* copy(int64_t plane, int64_t y) { return in_.read(plane, y, copied_.data()); }

 private:
  const Acc* source(int64_t plane, int64_t y) {
    if (const Acc* row = in_.in_place(plane, y, static_cast<Acc*>(nullptr))) return row;
    return source_.row(plane, y, [&](Acc* row) { in_.load(plane, y, row); });
  }

  Rows<const T> in_;
  Resize resize_;
  std::vector<Tap> columns_;
  KeptRows<Acc> source_;
  std::vector<T> copied_;
  std::vector<Acc> zeros_;
};

}  // namespace a2s
