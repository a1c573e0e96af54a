#include <torch/csrc/stable/library.h>

#include <vector>

#include "../interp/planar_rows.h"
#include "segment.h"

namespace {

using namespace a2s;

// Lets class c, with a row of scores, take the pixels where it beats the best before it.
template <class Acc>
A2S_CLONES void take_over(const Between<Acc>& scores, int64_t width, Acc c, Acc* best, Acc* label) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    const Acc value = scores.template at<Acc>(x);
    const bool takes = c == 0 || beats(value, best[x]);
    best[x] = takes ? value : best[x];
    label[x] = takes ? c : label[x];
  }
}

Tensor segment_cpu(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  auto* const label_data = static_cast<uint8_t*>(labels.data_ptr());
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    const Map<const T> in = map_of<const T>(scores);
    const Resize resize(in.h, in.w, height, width);
    for_each_part(in.n * height, width * in.c, [&](int64_t begin, int64_t end) {
      std::vector<PlanarRows<T>> rows(in.c, PlanarRows<T>(in, resize));  // each class keeps its resized rows
      std::vector<Acc> best(width), label(width);
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t c = 0; c < in.c; ++c) {
          take_over(rows[c].row(r / height * in.c + c, r % height), width, static_cast<Acc>(c), best.data(),
                    label.data());
        }
        convert(label.data(), width, label_data + r * width);
      }
    });
  });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) { m.impl("segment", TORCH_BOX(&segment_cpu)); }
