#include "mean_field.h"

#include <array>

#include "lattice.h"
#include "parallel.h"

namespace a2s::crf {
namespace {

constexpr int64_t kPixels = 256;  // per range of a loop, so that their rows fit in L1

template <size_t d, class Feature>
Lattice lattice_of(int64_t pixels, int channels, int threads, const Feature& feature) {
  const auto features = uninitialized<std::array<float, d>>(pixels);
  parallel_for(threads, pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) features[i] = feature(i);
  });
  return Lattice(features.get(), pixels, channels, threads);
}

}  // namespace

void mean_field(const uint8_t* image, const float* scores, int64_t height, int64_t width, int classes,
                int64_t iterations, const Kernels& kernels, int threads, float* marginals) {
  const int64_t pixels = height * width;
  const int channels = classes + 1;

  Matrix unary(pixels, channels), q(pixels, channels);
  parallel_for(threads, pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < unary.width(); ++c) {
      for (int64_t i = begin; i < end; ++i) unary[i][c] = c < classes ? scores[c * pixels + i] : kPadding;
    }
    update(unary, nullptr, 0, q, begin, end);
    // The extra channel is 1 everywhere, so that the first filtering also computes the sums of the kernels.
    for (int64_t i = begin; i < end; ++i) q[i][classes] = 1;
  });

  Lattice positions = lattice_of<2>(pixels, channels, threads, [&](int64_t i) {
    return std::array<float, 2>{i % width / kernels.pos_xy_std, i / width / kernels.pos_xy_std};
  });
  Lattice bilateral = lattice_of<5>(pixels, channels, threads, [&](int64_t i) {
    const uint8_t* rgb = image + 3 * i;
    return std::array<float, 5>{i % width / kernels.bi_xy_std, i / width / kernels.bi_xy_std,
                                rgb[0] / kernels.bi_rgb_std, rgb[1] / kernels.bi_rgb_std, rgb[2] / kernels.bi_rgb_std};
  });

  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    positions.filter(q, threads);
    bilateral.filter(q, threads);
    if (iteration == 0) {
      positions.normalise(classes, kernels.pos_w, threads);
      bilateral.normalise(classes, kernels.bi_w, threads);
    }
    const Slice slices[] = {positions.slice(), bilateral.slice()};
    parallel_for(threads, pixels, kPixels,
                 [&](int64_t begin, int64_t end) { update(unary, slices, 2, q, begin, end); });
  }

  parallel_for(threads, pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < classes; ++c) {
      for (int64_t i = begin; i < end; ++i) marginals[c * pixels + i] = q[i][c];
    }
  });
}

}  // namespace a2s::crf
