// The CPU loop of segment, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../rows/planar_rows.h"
#include "segment.h"

namespace {

using namespace a2s;

// Gives class c the pixels of a row where its score beats the best score of the classes before it.
template <class Acc>
A2S_CLONES static void update_labels(const Lerp<Acc>& scores, int64_t width, Acc c, Acc* best, Acc* label) {
  A2S_INDEPENDENT
  for (int64_t x = 0; x < width; ++x) {
    const Acc value = scores.template at<Acc>(x);
    const bool wins = c == 0 || beats(value, best[x]);
    best[x] = wins ? value : best[x];
    label[x] = wins ? c : label[x];
  }
}

Tensor segment_cpu(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  auto* const label_data = static_cast<uint8_t*>(labels.data_ptr());
  dispatch_cpu("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    const Map<const T> in = map_of<const T>(scores);
    const Resize resize(in.h, in.w, height, width);
    for_each_part(in.n * height, width * in.c, [&](int64_t begin, int64_t end) {
      std::vector<PlanarRows<T>> rows(in.c, PlanarRows<T>(in, resize));  // a cache per class
      std::vector<Acc> best(width), label(width);
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t c = 0; c < in.c; ++c) {
          update_labels(rows[c].row(r / height * in.c + c, r % height), width, static_cast<Acc>(c), best.data(),
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
