// Launching merges on a GPU: combinations of resized maps.
#pragma once

#include "../interp/resize.h"
#include "scale_merge.h"

namespace a2s {

template <class T>
Map<const T> optional_map(const std::optional<Tensor>& tensor) {
  return tensor ? map_of<const T>(*tensor) : Map<const T>{};
}

// The maps of `scores`, with rows that 32-bit offsets reach.
inline std::vector<Tensor> addressable_all(const std::vector<Tensor>& scores, bool interleaved) {
  std::vector<Tensor> result;
  for (const Tensor& score : scores) result.push_back(addressable(score, interleaved));
  return result;
}

// Launches the merge of `scores` into `merged`; op_of(type, count) makes the Op.
template <class OpOf>
void launch_merge(const char* op, const std::vector<Tensor>& scores, const Tensor& merged, const Tensor* winner,
                  const OpOf& op_of) {
  dispatch_merge(op, scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const Map<T> out = map_of<T>(merged);
    const std::vector<Tensor> from = addressable_all(scores, is_interleaved(out));
    const ScaleSet<T, S> scales(from, out.h, out.w);
    dispatch_layout(out, [&](auto interleaved) {
      launch_resize<T, S, decltype(interleaved)::value>(merged, scales, op_of(type, count), out,
                                                           winner ? map_of<uint8_t>(*winner) : Map<uint8_t>{});
    });
  });
}

}  // namespace a2s
