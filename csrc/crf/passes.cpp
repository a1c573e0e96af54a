#include "passes.h"

#include "../rows/simd.h"
#include "../support/exp.h"

namespace a2s::crf {
namespace {

struct Term {
  const float* row;
  float weight;
};

// out = start + the sum of weight * values[row] over the shares. A null `start` is 0; `out` may be `start`.
void add_shares(const Matrix& values, const Share* shares, int64_t count, const float* start, float* out) {
  const auto term = [&](int64_t k) { return Term{values[shares[k].row], shares[k].weight}; };
  sum_rows(count, term, values.width(), start, out);
}

// to = softmax(from), where e^x is 0 for x < -20. `to` may be `from`.
void softmax(const float* from, int width, float* to) {
  Lanes<float> most = load_lanes(from);
  for (int c = kLanes; c < width; c += kLanes) {
    const Lanes<float> values = load_lanes(from + c);
    most = most > values ? most : values;
  }
  const float largest = fold(most, [](float a, float b) { return a > b ? a : b; });
  Lanes<float> total{};
  for (int c = 0; c < width; c += kLanes) {
    A2S_INDEPENDENT
    for (int l = c; l < c + kLanes; ++l) {
      const float x = from[l] - largest, e = exp_of(x);
      to[l] = x < -20.f ? 0.f : e;
    }
    total += load_lanes(to + c);
  }
  const float scale = 1 / fold(total, [](float a, float b) { return a + b; });
  for (int c = 0; c < width; ++c) to[c] *= scale;
}

}  // namespace

A2S_CLONES void splat(const Matrix& values, const Share* shares, const int64_t* share_begin, Matrix& sums,
                      int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    add_shares(values, shares + share_begin[i], share_begin[i + 1] - share_begin[i], nullptr, sums[i]);
  }
}

A2S_CLONES void blur(const Matrix& values, const Neighbours* neighbours, Matrix& blurred, int64_t begin, int64_t end) {
  const int width = values.width();
  for (int64_t i = begin; i < end; ++i) {
    const float *row = values[i], *before = values[neighbours[i].before], *after = values[neighbours[i].after];
    float* out = blurred[i];
    A2S_INDEPENDENT
    for (int c = 0; c < width; ++c) out[c] = row[c] + 0.5f * (before[c] + after[c]);
  }
}

A2S_CLONES void update(const Matrix& unary, const Slice* slices, int count, Matrix& q, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float* start = unary[i];
    for (const Slice* slice = slices; slice < slices + count; ++slice) {
      add_shares(*slice->values, slice->shares + i * slice->per_row, slice->per_row, start, q[i]);
      start = q[i];
    }
    softmax(start, q.width(), q[i]);
  }
}

}  // namespace a2s::crf
