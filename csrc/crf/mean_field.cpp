#include "mean_field.h"

#include <array>

#include "lattice.h"

namespace a2s::crf {
namespace {

constexpr int64_t kPixels = 256;  // a piece of work whose rows fit in the first cache

template <size_t d, class Feature>
Lattice lattice_of(int64_t pixels, int channels, Team& team, const Feature& feature) {
  const auto features = uninitialized<std::array<float, d>>(pixels);
  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) features[i] = feature(i);
  });
  return Lattice(features.get(), pixels, channels, team);
}

}  // namespace

void mean_field(const uint8_t* image, const float* scores, int64_t height, int64_t width, int classes, int iterations,
                const Kernels& kernels, int threads, float* marginals) {
  Team team(threads);
  const int64_t pixels = height * width;
  const int channels = classes + 1;

  Rows unary(pixels, channels), q(pixels, channels);
  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < unary.width(); ++c) {
      for (int64_t i = begin; i < end; ++i) unary[i][c] = c < classes ? scores[c * pixels + i] : kPadding;
    }
    update(unary, nullptr, 0, q, begin, end);
    // The spare channel makes the first filtering give the sums of the kernels as well.
    for (int64_t i = begin; i < end; ++i) q[i][classes] = 1;
  });

  Lattice positions = lattice_of<2>(pixels, channels, team, [&](int64_t i) {
    return std::array<float, 2>{i % width / kernels.pos_xy_std, i / width / kernels.pos_xy_std};
  });
  Lattice bilateral = lattice_of<5>(pixels, channels, team, [&](int64_t i) {
    const uint8_t* rgb = image + 3 * i;
    return std::array<float, 5>{i % width / kernels.bi_xy_std, i / width / kernels.bi_xy_std,
                                rgb[0] / kernels.bi_rgb_std, rgb[1] / kernels.bi_rgb_std, rgb[2] / kernels.bi_rgb_std};
  });

  for (int iteration = 0; iteration < iterations; ++iteration) {
    positions.filter(q, team);
    bilateral.filter(q, team);
    if (iteration == 0) {
      positions.normalise(classes, kernels.pos_w, team);
      bilateral.normalise(classes, kernels.bi_w, team);
    }
    const Slice slices[] = {positions.slice(), bilateral.slice()};
    team.share(pixels, kPixels, [&](int64_t begin, int64_t end) { update(unary, slices, 2, q, begin, end); });
  }

  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < classes; ++c) {
      for (int64_t i = begin; i < end; ++i) marginals[c * pixels + i] = q[i][c];
    }
  });
}

}  // namespace a2s::crf
