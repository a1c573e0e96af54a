// Launching Interp's adjoint on a GPU: how maps are cut into tiles.
#pragma once

#include <vector>

#include "gather.h"

namespace a2s {

constexpr int kResultBytes = 9 * 1024;  // sums of a tile's results, where its columns come in chunks

// Cuts the part into tiles for blocks of at most `threads`; returns the bytes of shared memory that they need.
template <int V, int K, bool kInterleaved, class T>
int plan_gather(GatherPart<T>& a, int threads) {
  using Sum = Sums<acc_t<T>, V, K>;
  constexpr int acc = sizeof(acc_t<T>), kRows = kGatherRows<V>;
  const Map<T>& out = a.out;
  const Axis& axis = a.resize.x;
  const int64_t channels = out.c / V, limit = std::min(channels, std::max<int64_t>(1, channel_limit(a.grad) / V));
  // Columns of outputs that `inputs` columns gather.
  const auto window = [&](int64_t inputs) {
    if (a.resize.copies) return inputs;
    const double most = axis.ratio > 0 ? (inputs + 1) / static_cast<double>(axis.ratio) + 2 : axis.out;
    return most < axis.out ? static_cast<int64_t>(most) : axis.out;
  };
  // Where not all columns that a tile gathers fit into shared memory, they come in chunks.
  const int64_t all_slots = ceil_div(limit, K), sums = kResultBytes / (kRows * V * acc);
  int64_t width = 1, slots;
  if (kInterleaved) {
    slots = balanced(all_slots, V > 1 ? 8 : 16);
    const int64_t most = threads / slots;
    if (V > 1 && !a.resize.copies) {
      while (width < std::min<int64_t>(out.w, most) && window(width + 1) <= most) ++width;
    } else {
      width = balanced(out.w, std::max<int64_t>(1, sums / (K * slots)));
    }
    a.chunk = a.resize.copies ? width : balanced(window(width), most);
  } else {
    // Columns of which all outputs come at once, if they are no fewer than in chunks.
    int64_t most = 0;
    while (most < out.w && window(most + 1) <= threads) ++most;
    const bool whole = most >= std::min<int64_t>(out.w, sums / K);
    const int64_t results = whole ? 17 * 1024 / (kRows * sizeof(T)) : sums;
    width = balanced(out.w, whole ? std::min(results / K, most) : results / K);
    a.chunk = a.resize.copies ? width : balanced(window(width), threads);
    slots = Places::planar(a.chunk, std::clamp<int64_t>(results / (K * width), 1, all_slots)).slots;
    if (slots > 1) slots = std::min<int64_t>(slots, std::max(1, threads / a.chunk));
  }
  a.group = static_cast<int>(std::min(K * slots, limit));
  int64_t rows = kRows, at_once = ceil_div(channels, a.group) * a.group;
  const auto cut = [&] { a.tiling = Tiling(out.n, out.h, out.w, channels, rows, width, at_once); };
  cut();
  for (; a.tiling.blocks() < kBlocksWanted && at_once > a.group; cut()) at_once -= a.group;
  for (; a.tiling.blocks() < kBlocksWanted && rows > 4; cut()) --rows;
  a.columns = Places(a.chunk, slots, kInterleaved);
  const bool in_chunks = a.chunk < window(width);
  a.by_inner = Divisor(kInterleaved ? a.group : a.tiling.width);
  a.by_inputs = Divisor(int64_t{a.tiling.width} * a.group);
  const auto bytes = [](int places, int values) { return (places * values * acc + 15) / 16 * 16; };
  if (!a.resize.copies) a.partial_bytes = bytes(a.columns.count(), Sum::kColumn);
  if (!a.resize.copies && in_chunks) {
    a.result_bytes = bytes(a.tiling.width * a.group * (kRows / kRowsAtOnce<V>), Sum::kResult);
  }
  if (!kInterleaved) {
    a.staging = Staging(out, a.tiling.rows, a.group, a.tiling.width, false);
    a.staged_bytes = a.staging.template bytes<T>();
  }
  return a.partial_bytes + a.result_bytes + a.staged_bytes + 4 * (2 + a.tiling.width + a.chunk);
}

// Gathers up to kMaxScales maps of one layout, `scale` times.
template <class T, int V, bool kInterleaved>
void launch_gather(const Tensor& on, const std::vector<Map<T>>& maps, const std::vector<Map<const T>>& grads,
                   acc_t<T> scale) {
  constexpr int K = V > 1 || sizeof(T) == 8 ? 1 : 3, most = kGatherThreads<V>;
  GatherArguments<T> a{};
  int shared_bytes = 0, threads = 32;
  for (size_t s = 0; s < maps.size(); ++s) {
    auto& part = a.part[s];
    part.out = maps[s];
    part.grad = grads[s];
    part.next_row = bytes_between_rows(part.grad);
    part.resize = Resize(part.out.h, part.out.w, part.grad.h, part.grad.w);
    part.scale = scale;
    if (part.resize.copies && scale == 1) part.copy = ImageCopy<T>(part.grad, part.out);
    if (part.copy.bytes > 0) {
      threads = std::max(threads, kCopyThreads);
      a.parts.add(part.copy.blocks(part.out.n));
      continue;
    }
    shared_bytes = std::max(shared_bytes, plan_gather<V, K, kInterleaved>(part, most));
    threads = std::max(threads, std::min(most, part.columns.threads()));
    a.parts.add(part.tiling.blocks());
  }
  launch(on, a.parts.blocks, threads, shared_bytes, gather<T, V, K, kInterleaved>, a);
}

}  // namespace a2s
