// The CPU loops of average and max merging, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "merge_rows.h"

namespace {

using namespace a2s;

// Merges all rows. op_of(out, winner) returns the op of resize_row that writes a row to `out`, and one of `winners`.
template <class T, class OpOf>
void merge_all_rows(const std::vector<Tensor>& scores, const Map<T>& merged,
                    const std::optional<Map<uint8_t>>& winners, const OpOf& op_of) {
  const bool interleaved = takes_interleaved(merged);
  const Rows<T> rows(merged, interleaved);
  std::optional<Rows<uint8_t>> winner_rows;
  if (winners) winner_rows.emplace(*winners, interleaved);
  for_each_part(rows.planes() * merged.h, rows.values(), [&](int64_t begin, int64_t end) {
    ScaleRows<T> scales(scores, merged.h, merged.w, interleaved);
    std::vector<T> buffer(rows.values());
    std::vector<uint8_t> winner_buffer(winner_rows ? rows.values() : 0);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t plane = r / merged.h, y = r % merged.h;
      T* out = rows.in_place(plane, y, buffer.data());
      uint8_t* winner = winner_rows ? winner_rows->in_place(plane, y, winner_buffer.data()) : nullptr;
      merge_row(scales, plane, y, op_of(out, winner));
      rows.store(plane, y, out);
      if (winner_rows) winner_rows->store(plane, y, winner);
    }
  });
}

Tensor scale_average_cpu(const std::vector<Tensor>& scores, int64_t height, int64_t width, double factor) {
  Tensor merged = empty_merged("scale_average", scores, height, width);
  dispatch_cpu("scale_average", merged, [&](auto type) {
    using T = typename decltype(type)::type;
    merge_all_rows(scores, map_of<T>(merged), std::nullopt, [&](T* out, uint8_t*) {
      return AverageOp<T>{static_cast<float>(factor), out};
    });
  });
  return merged;
}

std::vector<Tensor> scale_average_backward_cpu(const Tensor& grad, const std::vector<Tensor>& scores, double factor) {
  check_average_backward("scale_average_backward", grad, scores);
  std::vector<Tensor> grad_scores = empty_grads(grad, scores);
  interp_adjoint(std::vector<Tensor>(scores.size(), grad), grad_scores, factor);
  return grad_scores;
}

std::tuple<Tensor, Tensor> scale_max_cpu(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  Tensor merged = empty_merged("scale_max", scores, height, width);
  Tensor winner = empty_winner(merged);
  dispatch_cpu("scale_max", merged, [&](auto type) {
    using T = typename decltype(type)::type;
    merge_all_rows(scores, map_of<T>(merged), map_of<uint8_t>(winner), [](T* out, uint8_t* winner_row) {
      return MaxOp<T>{out, winner_row};
    });
  });
  return {merged, winner};
}

std::vector<Tensor> scale_max_backward_cpu(const Tensor& grad, const Tensor& winner,
                                           const std::vector<Tensor>& scores) {
  check_max_backward("scale_max_backward", grad, winner, scores);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  dispatch_cpu("scale_max_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    for (size_t s = 0; s < scores.size(); ++s) {
      const Map<T> out = map_of<T>(grad_scores[s]);
      const bool interleaved = takes_interleaved(out);
      const Rows<const T> rows(map_of<const T>(grad), interleaved);
      const Rows<const uint8_t> winner_rows(map_of<const uint8_t>(winner), interleaved);
      gather_rows(out, Resize(out.h, out.w, grad.size(2), grad.size(3)), [&, s] {
        return [&, s, buffer = std::vector<T>(rows.values()),
                winners = std::vector<uint8_t>(rows.values())](int64_t plane, int64_t y) mutable {
          return WonValue<T>{rows.read(plane, y, buffer.data()), winner_rows.read(plane, y, winners.data()),
                             static_cast<uint8_t>(s)};
        };
      });
    }
  });
  return grad_scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("scale_average", TORCH_BOX(&scale_average_cpu));
  m.impl("scale_average_backward", TORCH_BOX(&scale_average_backward_cpu));
  m.impl("scale_max", TORCH_BOX(&scale_max_cpu));
  m.impl("scale_max_backward", TORCH_BOX(&scale_max_backward_cpu));
}
