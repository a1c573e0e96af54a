// Mean field inference in the fully connected CRF of Krähenbühl and Koltun (2011), with Potts compatibility.
#pragma once

#include <cstdint>

namespace a2s::crf {

// The weights and standard deviations of the two kernels: on positions alone, and on positions and colours
// ("bilateral"). Standard deviations are in pixels and grey levels.
struct Kernels {
  float pos_w, pos_xy_std;
  float bi_w, bi_xy_std, bi_rgb_std;
};

// image: (height, width, 3) RGB. scores and marginals: (classes, height, width).
//
//   Q = softmax(scores), then `iterations` times
//   Q[i] = softmax(scores[i] + sum over both kernels of w / (sum_j k(i, j)) * sum_j k(i, j) Q[j])
//
// where j runs over all pixels, i included. The lattice computes the sums up to one factor, which cancels.
// Throws std::invalid_argument if a standard deviation is too small for the image, and std::bad_alloc.
void mean_field(const uint8_t* image, const float* scores, int64_t height, int64_t width, int classes,
                int64_t iterations, const Kernels& kernels, int threads, float* marginals);

}  // namespace a2s::crf
