// Rows of logits and softmax weights on the CPU. softmax_cpu.cpp defines the loops.
#pragma once

#include "../rows/rows.h"
#include "scale_merge.h"

namespace a2s {

// Rows of numbers, one per scale: for example the weights of all scales for a row of pixels.
template <class Acc>
struct RowSet {
  Acc* first;
  int64_t count, width;

  Acc* row(int64_t s) const { return first + s * width; }

  // V as in load_values.
  template <class V, size_t S>
  void at(int64_t x, V (&v)[S]) const {
    for (size_t s = 0; s < S; ++s) v[s] = load_values<V>(row(s) + x);
  }
  template <size_t S>
  void set(int64_t x, const Acc (&v)[S]) const {
    for (size_t s = 0; s < S; ++s) row(s)[x] = v[s];
  }
};

// From pixels of adjacent values, one per scale, to rows, and back.
template <class T, class Acc>
void split_pixels(const T* from, const RowSet<Acc>& to);
template <class T, class Acc>
void join_pixels(const RowSet<Acc>& from, T* to);

// Softmax over the scales, in place.
template <class Acc>
void softmax_row(const RowSet<Acc>& rows);

// Turns gradients of the weights into gradients of the logits, in place.
template <class Acc>
void softmax_backward_row(const RowSet<Acc>& grads, const RowSet<Acc>& weights);

// A map with one channel per scale, such as logits or weights. Its rows are read and written as RowSets.
template <class T>
class ScaleChannels {
 public:
  explicit ScaleChannels(const Map<T>& map)
      : map_(map), planes_(map, false), joined_(map.c > 1 && map.stride_c == 1 && map.stride_w == map.c) {}

  template <class Acc>
  void load(int64_t n, int64_t y, const RowSet<Acc>& to) const {
    if (joined_) return split_pixels<std::remove_const_t<T>>(&map_.at(n, 0, y, 0), to);
    for (int64_t s = 0; s < map_.c; ++s) planes_.load(n * map_.c + s, y, to.row(s));
  }

  template <class Acc>
  void store(int64_t n, int64_t y, const RowSet<Acc>& from) const {
    if (joined_) return join_pixels(from, &map_.at(n, 0, y, 0));
    for (int64_t s = 0; s < map_.c; ++s) planes_.store(n * map_.c + s, y, from.row(s));
  }

 private:
  Map<T> map_;
  Rows<T> planes_;
  bool joined_;  // all values of a row are adjacent, pixel by pixel
};

// Fills `weights` with the softmax of the logits, on the same grid.
template <class T, class Out>
void softmax_rows(const Map<const T>& logits, const Map<Out>& weights) {
  using Acc = acc_t<T>;
  const ScaleChannels<const T> in(logits);
  const ScaleChannels<Out> out(weights);
  for_each_part(logits.n * logits.h, logits.c * logits.w, [&](int64_t begin, int64_t end) {
    std::vector<Acc> buffer(logits.c * logits.w);
    const RowSet<Acc> row{buffer.data(), logits.c, logits.w};
    for (int64_t r = begin; r < end; ++r) {
      in.load(r / logits.h, r % logits.h, row);
      softmax_row(row);
      out.store(r / logits.h, r % logits.h, row);
    }
  });
}

}  // namespace a2s
