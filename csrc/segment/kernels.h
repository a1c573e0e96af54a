// GPU kernel of segment and the host code that launches it.
#pragma once

#include "../support/launch.h"
#include "segment.h"

namespace a2s {

// A thread labels kRows pixels below each other: while they lie between the same rows of the scores, a class is resized
// along x once for all of them.
template <class T>
struct Segment {
  static constexpr int kRows = 8;
  Map<const T> scores;
  Resize resize;
  uint8_t* labels;

  int64_t threads() const { return scores.n * ((resize.y.out + kRows - 1) / kRows) * resize.x.out; }

  A2S_HD void operator()(int64_t i) const {
    using Acc = acc_t<T>;
    const int64_t height = resize.y.out, width = resize.x.out;
    const Element e = element_at(i, 1, (height + kRows - 1) / kRows, width, false);
    const Tap column = resize.x.tap(e.x);
    const Acc lx = column.lambda;
    Tap row[kRows];
    Acc best[kRows];
    int label[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t y = e.y * kRows + r;
      row[r] = resize.y.tap(y < height ? y : height - 1);
      best[r] = 0;
      label[r] = 0;
    }
    for (int c = 0; c < scores.c; ++c) {
      const auto across = [&](int y) {
        const auto low = static_cast<Acc>(scores.at(e.n, c, y, column.low));
        return resize.copies ? low : lerp(low, static_cast<Acc>(scores.at(e.n, c, y, column.high)), lx);
      };
      Acc low = 0, high = 0;
      for (int r = 0; r < kRows; ++r) {
        if (r == 0 || row[r].low != row[r - 1].low) {
          low = across(row[r].low);
          high = resize.copies ? Acc(0) : across(row[r].high);
        }
        const Acc ly = row[r].lambda;
        const Acc score = resize.copies ? low : lerp(low, high, ly);
        const bool takes = c == 0 || beats(score, best[r]);
        best[r] = takes ? score : best[r];
        label[r] = takes ? c : label[r];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const int64_t y = e.y * kRows + r;
      if (y < height) labels[(e.n * height + y) * width + e.x] = static_cast<uint8_t>(label[r]);
    }
  }
};

template <class Launch>
Tensor segment(const Tensor& scores, int64_t height, int64_t width) {
  Tensor labels = empty_labels(scores, height, width);
  dispatch("segment", scores, [&](auto type) {
    using T = typename decltype(type)::type;
    const Segment<T> kernel{map_of<const T>(scores), Resize(scores.size(2), scores.size(3), height, width),
                            static_cast<uint8_t*>(labels.data_ptr())};
    Launch::run(scores, kernel.threads(), kernel);
  });
  return labels;
}

}  // namespace a2s
