// The last step of inference: labels[n, y, x] = the class c with the largest Interp of scores[n, c] at (y, x). If
// scores are equal, the larger class (Caffe's ArgMax). The upsampled scores are never in memory.
#pragma once

#include "../interp/interp.h"
#include "../support/check.h"

namespace a2s {

// Whether a class's score beats the best score of the smaller classes.
template <class Acc>
A2S_HD bool beats(Acc score, Acc best) {
  return !(score < best);
}

inline Tensor empty_labels(const Tensor& scores, int64_t height, int64_t width) {
  check_map("segment", "scores", scores);
  check_size("segment", height, width);
  check(scores.size(1) <= 256, "a2s::segment: scores has ", scores.size(1), " classes; uint8 labels hold at most 256.");
  const std::array<int64_t, 3> size{scores.size(0), height, width};
  return torch::stable::empty({size.data(), size.size()}, ScalarType::Byte, std::nullopt, scores.device());
}

}  // namespace a2s
