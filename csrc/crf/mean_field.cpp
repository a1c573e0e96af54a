#include "mean_field.h"

#include <array>

#include "lattice.h"
#include "softmax.h"

namespace a2s::crf {
namespace {

constexpr int64_t kPixels = 256;  // a piece of work whose rows fit in the first cache

template <size_t d, class Feature>
Lattice lattice_of(int64_t pixels, int width, Team& team, const Feature& feature) {
  const auto features = uninitialized<std::array<float, d>>(pixels);
  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) features[i] = feature(i);
  });
  return Lattice(features.get(), pixels, width, team);
}

// q = softmax(unary + slices) for the pixels [begin, end).
A2S_VECTOR_CLONES
void update(const Rows& unary, const Lattice* const* lattices, int count, Rows& q, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Lanes* row = q[i];
    for (int v = 0; v < unary.width(); ++v) row[v] = unary[i][v];
    for (int k = 0; k < count; ++k) lattices[k]->add_slice(i, row);
    softmax(row, unary.width());
  }
}

}  // namespace

void mean_field(const uint8_t* image, const float* scores, int64_t height, int64_t width, int classes, int iterations,
                const Kernels& kernels, int threads, float* marginals) {
  Team team(threads);
  const int64_t pixels = height * width;
  const int vectors = classes / kLanes + 1;  // so that there is a channel to spare

  Rows unary(pixels, vectors), q(pixels, vectors);
  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < vectors * kLanes; ++c) {
      for (int64_t i = begin; i < end; ++i) unary.at(i, c) = c < classes ? scores[c * pixels + i] : kPadding;
    }
    update(unary, nullptr, 0, q, begin, end);
    // So that the first filtering gives the sums of the kernels as well.
    for (int64_t i = begin; i < end; ++i) q.at(i, classes) = 1;
  });

  Lattice positions = lattice_of<2>(pixels, vectors, team, [&](int64_t i) {
    return std::array<float, 2>{i % width / kernels.pos_xy_std, i / width / kernels.pos_xy_std};
  });
  Lattice bilateral = lattice_of<5>(pixels, vectors, team, [&](int64_t i) {
    const uint8_t* rgb = image + 3 * i;
    return std::array<float, 5>{i % width / kernels.bi_xy_std, i / width / kernels.bi_xy_std,
                                rgb[0] / kernels.bi_rgb_std, rgb[1] / kernels.bi_rgb_std, rgb[2] / kernels.bi_rgb_std};
  });
  const Lattice* const lattices[] = {&positions, &bilateral};

  for (int iteration = 0; iteration < iterations; ++iteration) {
    positions.filter(q, team);
    bilateral.filter(q, team);
    if (iteration == 0) {
      positions.normalise(classes, kernels.pos_w, team);
      bilateral.normalise(classes, kernels.bi_w, team);
    }
    team.share(pixels, kPixels, [&](int64_t begin, int64_t end) { update(unary, lattices, 2, q, begin, end); });
  }

  team.share(pixels, kPixels, [&](int64_t begin, int64_t end) {
    for (int c = 0; c < classes; ++c) {
      for (int64_t i = begin; i < end; ++i) marginals[c * pixels + i] = q.at(i, c);
    }
  });
}

}  // namespace a2s::crf
