// Maps whose gradients one launch gathers, and the outputs that a tile of them takes.
#pragma once

#include "../interp/gather.h"

namespace a2s {

// A resized map.
template <class T>
struct PairedMap {
  Map<T> out;
  Resize resize;  // of the forward pass: from `out` to the outputs
  int s;          // its number among the scores
  int columns;    // of a tile, at most; 0 if there is no such map
  Divisor by_inner;
  int64_t next_out, out_apart;  // bytes between rows, and between a thread's channels
  // Under attention.
  Map<const T> scores;
  uint32_t scores_apart;  // bytes between a thread's channels
  int64_t next_scores;    // bytes between rows
};

// A map that keeps its size.
template <class T>
struct OwnMap {
  Map<T> out;
  int s;                    // its number among the scores; -1 if there is none
  int64_t next_row, apart;  // bytes between rows, and between a thread's channels
  // Under attention.
  Map<const T> scores;
  int64_t next_scores, scores_apart;
};

// Pixels [begin, end) along an axis.
struct Span {
  int begin, end;
  A2S_HD int count() const { return end - begin; }
};

// The inputs whose first output is one of outputs [first, first + count).
A2S_HD Span inputs_of(const Axis& axis, int64_t first, int64_t count) {
  const auto begin = [&](int64_t o) {
    return static_cast<int>(o <= 0 ? 0 : o >= axis.out ? axis.in : axis.low(o - 1) + 1);
  };
  return {begin(first), begin(first + count)};
}

// Outputs [first, first + count), and those that read one of these inputs along either axis.
A2S_HD Span outputs_of(const Axis& a, const Axis& b, int first, int count) {
  const auto begin = [&](const Axis& axis) { return first_output(axis, inputs_of(axis, first, count).begin - 1); };
  const auto end = [&](const Axis& axis) { return first_output(axis, inputs_of(axis, first, count).end); };
  return {min(first, min(begin(a), begin(b))), max(first + count, max(end(a), end(b)))};
}

}  // namespace a2s
