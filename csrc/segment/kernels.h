// GPU kernel of segment and the host code that launches it.
#pragma once

#include "../support/launch.h"
#include "segment.h"

namespace a2s {

// A thread labels pixel (y, x) of image n.
template <class T>
struct Segment {
  Map<const T> scores;
  Resize resize;
  uint8_t* labels;

  A2S_HD void operator()(int64_t i) const {
    const Element e = element_at(i, 1, resize.y.out, resize.x.out, false);
    const PixelTaps at = taps_at(resize, e.y, e.x);
    acc_t<T> best = sample(scores, resize.copies, at, e.n, 0);
    int64_t label = 0;
    for (int64_t c = 1; c < scores.c; ++c) {
      const acc_t<T> score = sample(scores, resize.copies, at, e.n, c);
      if (beats(score, best)) {
        best = score;
        label = c;
      }
    }
    labels[i] = static_cast<uint8_t>(label);
  }
};

template <class Launch>
Tensor segment(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    Launch::run(scores, labels.numel(),
                Segment<T>{map_of<const T>(scores), Resize(scores.size(2), scores.size(3), height, width),
                           static_cast<uint8_t*>(labels.data_ptr())});
  });
  return labels;
}

}  // namespace a2s
