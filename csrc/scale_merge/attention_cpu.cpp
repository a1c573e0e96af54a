// The CPU loops of attention merging, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "merge_rows.h"

namespace {

using namespace a2s;

// The rows of the weights on the merged grid: the softmax of the logits there, or Interp of `coarse`, the softmax on
// the logits' grid.
template <class T>
class WeightRows {
 public:
  using Acc = acc_t<T>;

  WeightRows(const Map<const T>& logits, const std::optional<Map<const Acc>>& coarse, const Resize& resize)
      : logits_(logits) {
    if (coarse) coarse_.emplace(*coarse, resize);
  }

  void fill(int64_t n, int64_t y, const RowSet<Acc>& weights) {
    if (coarse_) {
      for (int64_t s = 0; s < weights.count; ++s) {
        lerp_row(coarse_->row(n * weights.count + s, y), weights.width, weights.row(s));
      }
    } else {
      logits_.load(n, y, weights);
      softmax_row(weights);
    }
  }

 private:
  ScaleChannels<const T> logits_;
  std::optional<PlanarRows<Acc>> coarse_;
};

// The results of a merge.
template <class T>
struct Merged {
  Map<T> scores, weights;
};

// Merges all rows and stores the weights. make_weight_rows() is called for each part of the rows.
template <class T, class MakeWeightRows>
void merge_rows(const std::vector<Tensor>& scores, const MakeWeightRows& make_weight_rows,
                const std::optional<Tensor>& recalibration, const Merged<T>& to) {
  using Acc = acc_t<T>;
  const int64_t height = to.scores.h, width = to.scores.w, count = to.weights.c;
  const bool interleaved = takes_interleaved(to.scores);
  const Rows<T> out_rows(to.scores, interleaved);
  const ScaleChannels<T> weight_rows(to.weights);
  const auto recalibration_rows = optional_rows<T>(recalibration, interleaved);
  for_each_part(to.scores.n * height, to.scores.c * width, [&](int64_t begin, int64_t end) {
    ScaleRows<T> scales(scores, height, width, interleaved);
    auto merged_weights = make_weight_rows();
    const int64_t most = std::min(band_rows(count * width), end - begin);
    std::vector<Acc> band(most * count * width);
    std::vector<T> out_buffer(out_rows.values()), buffer(recalibration_rows ? recalibration_rows->values() : 0);
    for_each_band(begin, end, height, most, [&](int64_t n, int64_t first, int64_t last) {
      const auto weights_of = [&](int64_t y) { return RowSet<Acc>{&band[(y - first) * count * width], count, width}; };
      for (int64_t y = first; y < last; ++y) {
        merged_weights.fill(n, y, weights_of(y));
        weight_rows.store(n, y, weights_of(y));
      }
      for (int64_t p = 0; p < out_rows.planes_per_image(); ++p) {
        const int64_t plane = n * out_rows.planes_per_image() + p;
        for (int64_t y = first; y < last; ++y) {
          T* out = out_rows.in_place(plane, y, out_buffer.data());
          const T* factors = recalibration_rows ? recalibration_rows->read(plane, y, buffer.data()) : nullptr;
          merge_row(scales, plane, y, AttentionOp<T>{weights_of(y), factors, out});
          out_rows.store(plane, y, out);
        }
      }
    });
  });
}

std::tuple<Tensor, Tensor> scale_merge_cpu(const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                                           int64_t width, const std::optional<Tensor>& recalibration) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  check_recalibration("scale_merge", recalibration, merged);
  dispatch_cpu("scale_merge", merged, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    const Map<const T> logit_map = map_of<const T>(logits);
    const Resize weight_resize(logit_map.h, logit_map.w, height, width);
    std::optional<Tensor> coarse;
    std::optional<Map<const Acc>> coarse_map;
    if (!weight_resize.copies) {
      coarse = empty_planes<Acc>(logits, logits.size(1));
      softmax_rows(logit_map, map_of<Acc>(*coarse));
      coarse_map = map_of<const Acc>(*coarse);
    }
    const Merged<T> to{map_of<T>(merged), map_of<T>(weights)};
    const auto weight_rows_of = [&] { return WeightRows<T>(logit_map, coarse_map, weight_resize); };
    merge_rows(scores, weight_rows_of, recalibration, to);
  });
  return {merged, weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) { m.impl("scale_merge", TORCH_BOX(&scale_merge_cpu)); }
