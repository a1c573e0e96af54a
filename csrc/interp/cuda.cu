// interp, its adjoint and interp_concat on a GPU.
#include <torch/csrc/stable/library.h>

#include "gather_columns.h"
#include "launch_gather.h"
#include "operators.h"
#include "resize.h"

namespace a2s {
namespace {

// Takes maps in groups of up to kMaxScales whose results, `to`, have one layout. Calls body(V, layout, from, to) for
// each, where V adjacent channels can be read and written at once.
template <class T, class Body>
void for_each_group(const std::vector<Tensor>& from, const std::vector<Tensor>& to, const Body& body) {
  const auto groups_of = [&](auto layout) {
    constexpr bool kInterleaved = decltype(layout)::value;
    std::vector<Tensor> kept;
    std::vector<Map<const T>> group_from;
    std::vector<Map<T>> group_to;
    bool in_packs = kInterleaved;
    const auto run = [&] {
      if constexpr (kInterleaved && kPack<T> > 1) {
        if (in_packs) return body(std::integral_constant<int, kPack<T>>{}, layout, group_from, group_to);
      }
      body(std::integral_constant<int, 1>{}, layout, group_from, group_to);
    };
    for (size_t i = 0; i < to.size(); ++i) {
      const Map<T> map = map_of<T>(to[i]);
      if (is_interleaved(map) != kInterleaved) continue;
      if (group_to.size() == kMaxScales) {
        run();
        group_from.clear();
        group_to.clear();
        in_packs = kInterleaved;
      }
      kept.push_back(addressable(from[i], kInterleaved));
      group_from.push_back(map_of<const T>(kept.back()));
      group_to.push_back(map);
      in_packs = in_packs && packs<kPack<T>>(group_from.back()) && packs<kPack<T>>(map);
    }
    if (!group_to.empty()) run();
  };
  groups_of(std::false_type{});
  groups_of(std::true_type{});
}

}  // namespace

void resize_into(const std::vector<Tensor>& x, const std::vector<Tensor>& y) {
  dispatch("interp", x[0], [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_group<T>(x, y, [&](auto pack, auto layout, const auto& from, const auto& to) {
      launch_resize_parts<T, decltype(pack)::value, decltype(layout)::value>(x[0], from, to);
    });
  });
}

// One launch serves up to kMaxScales maps of one layout.
void interp_adjoint(const std::vector<Tensor>& grads, const std::vector<Tensor>& grads_in, double scale) {
  dispatch("interp_backward", grads[0], [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_group<T>(grads, grads_in, [&](auto pack, auto layout, const auto& from, const auto& to) {
      if constexpr (!decltype(layout)::value) {
        if (launch_gather_columns<T>(grads[0], to, from, static_cast<float>(scale))) return;
      }
      launch_gather<T, decltype(pack)::value, decltype(layout)::value>(grads[0], to, from, static_cast<float>(scale));
    });
  });
}

}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("interp", TORCH_BOX(&a2s::interp));
  m.impl("interp_backward", TORCH_BOX(&a2s::interp_backward));
  m.impl("interp_concat", TORCH_BOX(&a2s::interp_concat));
  m.impl("interp_concat_backward", TORCH_BOX(&a2s::interp_concat_backward));
}
