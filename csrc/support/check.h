// Checks of arguments. Their messages reach Python unchanged, as one sentence.
#pragma once

#include <sstream>
#include <stdexcept>
#include <vector>

#include "tensor.h"

namespace a2s {

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// `tensor` must be an (N, C, H, W) map with at least one channel and pixel. Coordinates are float32, hence the limit
// 2^24.
inline void check_map(const char* op, const char* argument, const Tensor& tensor) {
  check(tensor.dim() == 4, "a2s::", op, ": ", argument, " must be (N, C, H, W), it has ", tensor.dim(), " dimensions.");
  for (int64_t axis = 1; axis < 4; ++axis) {
    check(tensor.size(axis) >= 1 && tensor.size(axis) <= (int64_t{1} << 24), "a2s::", op, ": ", argument,
          " must have 1 to 2^24 channels, rows and columns, not ", tensor.size(axis), ".");
  }
}

inline void check_size(const char* op, int64_t height, int64_t width) {
  check(height >= 1 && width >= 1 && height <= (int64_t{1} << 24) && width <= (int64_t{1} << 24), "a2s::", op,
        ": the output must have 1 to 2^24 rows and columns, not ", height, "x", width, ".");
}

// `tensor` must have the dtype, device and batch size of `other`.
inline void check_matches(const char* op, const char* argument, const Tensor& tensor, const Tensor& other) {
  check(tensor.scalar_type() == other.scalar_type(), "a2s::", op, ": ", argument,
        " must have the dtype of the other maps.");
  check(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), "a2s::", op, ": ",
        argument, " must be on the device of the other maps.");
  check(tensor.size(0) == other.size(0), "a2s::", op, ": ", argument, " has batch size ", tensor.size(0),
        ", the other maps have ", other.size(0), ".");
}

inline void check_shape(const char* op, const char* argument, const Tensor& tensor, int64_t n, int64_t c, int64_t h,
                        int64_t w) {
  check(tensor.dim() == 4 && tensor.size(0) == n && tensor.size(1) == c && tensor.size(2) == h && tensor.size(3) == w,
        "a2s::", op, ": ", argument, " must have shape (", n, ", ", c, ", ", h, ", ", w, ").");
}

// `scores` must be 1 to kMaxScales maps with the same dtype, device, batch size and channels.
inline void check_scores(const char* op, const std::vector<Tensor>& scores) {
  check(!scores.empty() && scores.size() <= kMaxScales, "a2s::", op, ": scores must be 1 to ", kMaxScales,
        " maps, not ", scores.size(), ".");
  for (const Tensor& score : scores) {
    check_map(op, "scores", score);
    check_matches(op, "scores", score, scores[0]);
    check(score.size(1) == scores[0].size(1), "a2s::", op, ": the score maps must have equal channels, not ",
          score.size(1), " and ", scores[0].size(1), ".");
  }
}

}  // namespace a2s
