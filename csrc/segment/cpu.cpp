#include <torch/csrc/stable/library.h>

#include <vector>

#include "../interp/rows.h"
#include "segment.h"

namespace {

using namespace a2s;

Tensor segment_cpu(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  auto* const label_data = static_cast<uint8_t*>(labels.data_ptr());
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    const Map<const T> in = map_of<const T>(scores);
    const Resize resize(in.h, in.w, height, width);
    // A row's result row is in the cache of its class, so there is a set of resized rows for each class plane.
    const int64_t lanes = in.channels_last ? in.c : 1, planes = in.c / lanes;
    torch::stable::parallel_for(0, in.n * height, row_grain(width * in.c), [&](int64_t begin, int64_t end) {
      std::vector<ResizedRows<T>> resized(planes, ResizedRows<T>(in, resize, in.channels_last));
      std::vector<Acc> best(width);
      std::vector<int32_t> label(width);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t n = r / height, y = r % height;
        for (int64_t p = 0; p < planes; ++p) {
          const Acc* score = resized[p].row(n * planes + p, y);
          for (int64_t l = 0; l < lanes; ++l) {
            const auto c = static_cast<int32_t>(p * lanes + l);
            for (int64_t x = 0; x < width; ++x) {
              const Acc value = score[x * lanes + l];
              const bool takes = c == 0 || beats(value, best[x]);
              best[x] = takes ? value : best[x];
              label[x] = takes ? c : label[x];
            }
          }
        }
        for (int64_t x = 0; x < width; ++x) label_data[r * width + x] = static_cast<uint8_t>(label[x]);
      }
    });
  });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) { m.impl("segment", TORCH_BOX(&segment_cpu)); }
