#include <torch/csrc/stable/library.h>

#include "../interp/gather_rows.h"
#include "interp_shift_add.h"

namespace {

using namespace a2s;

// Some channels of one image that are worked on together. In a channels_last map they are adjacent, so few that a row of
// sums over taps stays in cache, and at least two; in a planar map a strip is one channel.
struct Strip {
  int64_t n, first, lanes;
};

class Strips {
 public:
  template <class T>
  explicit Strips(const Map<T>& map)
      : channels_(map.c), per_image_(map.channels_last ? (map.c + 127) / 128 : map.c), count_(map.n * per_image_) {}

  int64_t count() const { return count_; }
  int64_t most_lanes() const { return (channels_ + per_image_ - 1) / per_image_; }
  Strip operator[](int64_t i) const {
    const int64_t strip = i % per_image_, first = strip * channels_ / per_image_;
    return {i / per_image_, first, (strip + 1) * channels_ / per_image_ - first};
  }

 private:
  int64_t channels_, per_image_, count_;
};

// A sum of rows with their weights. A row is pixels of adjacent lanes, and pixels lie `stride` values apart.
template <class T>
class RowSum {
 public:
  using Acc = acc_t<T>;

  void clear() { terms_.clear(); }
  void add(const T* row, Acc weight) {
    if (weight != 0) terms_.push_back({row, weight});
  }

  // The pixels of `out` follow each other.
  template <class Out>
  void store(int64_t stride, int64_t width, int64_t lanes, Out* out) {
    if (stride == lanes) {  // as one long pixel
      stride = lanes = width * lanes;
      width = 1;
    }
    if constexpr (std::is_same_v<Out, Acc>) {
      store_sum(terms_.data(), terms_.size(), stride, width, lanes, out);
    } else {
      sum_.resize(width * lanes);
      store_sum(terms_.data(), terms_.size(), stride, width, lanes, sum_.data());
      convert(sum_.data(), width * lanes, out);
    }
  }

 private:
  struct Term {
    const T* row;
    Acc weight;
  };

  A2S_CLONES void store_sum(const Term* terms, size_t count, int64_t stride, int64_t width, int64_t lanes, Acc* out) {
    for (int64_t x = 0; x < width; ++x, out += lanes) {
      const auto store_groups = [=](int64_t l, auto groups) {
        Lanes<Acc> sum[groups] = {};
        for (size_t t = 0; t < count; ++t) {
          const T* from = terms[t].row + x * stride + l;
          for (int g = 0; g < groups; ++g) sum[g] += terms[t].weight * load_values<Lanes<Acc>>(from + g * kLanes);
        }
        for (int g = 0; g < groups; ++g) store_values(out + l + g * kLanes, sum[g]);
      };
      int64_t l = 0;
      for (; l + 4 * kLanes <= lanes; l += 4 * kLanes) store_groups(l, std::integral_constant<int, 4>{});
      for (; l + kLanes <= lanes; l += kLanes) store_groups(l, std::integral_constant<int, 1>{});
      if (l < lanes && lanes > kLanes) {
        store_groups(lanes - kLanes, std::integral_constant<int, 1>{});
        continue;
      }
      for (; l < lanes; ++l) {
        Acc sum = 0;
        for (size_t t = 0; t < count; ++t) sum += terms[t].weight * static_cast<Acc>(terms[t].row[x * stride + l]);
        out[l] = sum;
      }
    }
  }

  std::vector<Term> terms_;
  std::vector<Acc> sum_;
};

// Rows of the result. The taps' planes are summed down their columns, then resized along the row.
template <class T>
class ShiftAddRows {
 public:
  using Acc = acc_t<T>;

  ShiftAddRows(const Map<const T>& planes, const Map<const T>& base, const Map<T>& out, int64_t most_lanes)
      : planes_(planes), base_(base), out_(out), resize_(planes.h, planes.w, out.h, out.w), columns_(resize_.x),
        base_row_(out.w * most_lanes) {
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      column_sum_[dx].resize(planes.w * most_lanes);
      widened_[dx].resize(most_lanes == 1 ? out.w + 2 : 0);
    }
  }

  void row(const Strip& strip, int64_t y) {
    const int64_t lanes = strip.lanes;
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      down_.clear();
      for (int64_t dy = 0; dy < kTaps; ++dy) {
        if (y + dy < 1 || y + dy > out_.h) continue;
        const Tap tap = resize_.y.tap(y + dy - 1);
        const int64_t channel = (kTaps * dy + dx) * out_.c + strip.first;
        down_.add(&planes_.at(strip.n, channel, tap.low, 0), 1 - static_cast<Acc>(tap.lambda));
        down_.add(&planes_.at(strip.n, channel, tap.high, 0), tap.lambda);
      }
      down_.store(planes_.stride_w, planes_.w, lanes, column_sum_[dx].data());
    }
    const Rows<const T> base(channels_of(base_, strip.first, lanes), lanes > 1);
    const Acc* start = base.read(strip.n, y, base_row_.data());
    if (lanes == 1) add_planar(start, &out_.at(strip.n, strip.first, y, 0));
    else add_interleaved(start, strip, y);
  }

 private:
  void add_planar(const Acc* start, T* result) {
    along_.clear();
    along_.add(start, 1);
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      widen(columns_, column_sum_[dx].data(), widened_[dx].data() + 1);  // between zeros
      along_.add(widened_[dx].data() + dx, 1);
    }
    along_.store(1, out_.w, 1, result);
  }

  void add_interleaved(const Acc* start, const Strip& strip, int64_t y) {
    for (int64_t x = 0; x < out_.w; ++x) {
      along_.clear();
      along_.add(start + x * strip.lanes, 1);
      for (int64_t dx = 0; dx < kTaps; ++dx) {
        if (x + dx < 1 || x + dx > out_.w) continue;
        const Tap tap = resize_.x.tap(x + dx - 1);
        along_.add(column_sum_[dx].data() + tap.low * strip.lanes, 1 - static_cast<Acc>(tap.lambda));
        along_.add(column_sum_[dx].data() + tap.high * strip.lanes, tap.lambda);
      }
      along_.store(strip.lanes, 1, strip.lanes, &out_.at(strip.n, strip.first, y, x));
    }
  }

  Map<const T> planes_, base_;
  Map<T> out_;
  Resize resize_;
  Columns<Acc> columns_;
  std::vector<Acc> base_row_;
  std::array<std::vector<Acc>, kTaps> column_sum_, widened_;  // a row for each dx
  RowSum<T> down_;
  RowSum<Acc> along_;
};

// Rows of the planes' gradient: down the rows of the result's that read them, then along.
template <class T>
class ShiftAddGradRows {
 public:
  using Acc = acc_t<T>;

  ShiftAddGradRows(const Map<const T>& grad, const Map<T>& grad_planes, int64_t most_lanes)
      : grad_(grad), grad_planes_(grad_planes), rows_(Axis(grad_planes.h, grad.h)),
        columns_(Axis(grad_planes.w, grad.w)), column_sum_((grad.w + 2) * most_lanes + columns_.padding()),
        row_(grad_planes.w) {}

  void rows(const Strip& strip, int64_t i) {
    const int64_t lanes = strip.lanes;
    const Readers& readers = rows_.pixels[i];
    for (int64_t dy = 0; dy < kTaps; ++dy) {
      down_.clear();
      for (int64_t v = readers.first; v < readers.end; ++v) {
        const int64_t y = v + 1 - dy;
        if (y < 0 || y >= grad_.h) continue;
        down_.add(&grad_.at(strip.n, strip.first, y, 0), rows_.weights[readers.weights + v - readers.first]);
      }
      // Between pixels that are 0.
      std::fill_n(column_sum_.begin(), lanes, Acc(0));
      down_.store(grad_.stride_w, grad_.w, lanes, column_sum_.data() + lanes);
      std::fill_n(column_sum_.begin() + (grad_.w + 1) * lanes, lanes, Acc(0));
      for (int64_t dx = 0; dx < kTaps; ++dx) {
        const Acc* moved = column_sum_.data() + (2 - dx) * lanes;
        const int64_t channel = (kTaps * dy + dx) * grad_.c + strip.first;
        if (lanes == 1) gather_planar(moved, strip.n, channel, i);
        else gather_interleaved(moved, strip, channel, i);
      }
    }
  }

 private:
  void gather_planar(const Acc* moved, int64_t n, int64_t channel, int64_t i) {
    const Rows<T> rows(channels_of(grad_planes_, channel, 1), false);
    Acc* result = rows.in_place(n, i, row_.data());
    gather_columns(columns_, moved, result);
    rows.store(n, i, result);
  }

  void gather_interleaved(const Acc* moved, const Strip& strip, int64_t channel, int64_t i) {
    for (int64_t j = 0; j < grad_planes_.w; ++j) {
      const Readers& readers = columns_.pixels[j];
      along_.clear();
      for (int64_t u = readers.first; u < readers.end; ++u) {
        along_.add(moved + u * strip.lanes, columns_.weights[readers.weights + u - readers.first]);
      }
      along_.store(strip.lanes, 1, strip.lanes, &grad_planes_.at(strip.n, channel, i, j));
    }
  }

  Map<const T> grad_;
  Map<T> grad_planes_;
  AxisReaders<Acc> rows_;
  ReaderColumns<Acc> columns_;
  std::vector<Acc> column_sum_, row_;
  RowSum<T> down_;
  RowSum<Acc> along_;
};

Tensor interp_shift_add_cpu(const Tensor& planes, const Tensor& base) {
  Tensor y = empty_shift_add(planes, base);
  dispatch("interp_shift_add", planes, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> out = map_of<T>(y);
    const Strips strips(out);
    for_each_part(strips.count() * out.h, out.w * strips.most_lanes(), [&](int64_t begin, int64_t end) {
      ShiftAddRows<T> rows(map_of<const T>(planes), map_of<const T>(base), out, strips.most_lanes());
      for (int64_t r = begin; r < end; ++r) rows.row(strips[r / out.h], r % out.h);
    });
  });
  return y;
}

Tensor interp_shift_add_backward_cpu(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<const T> grad_map = map_of<const T>(grad);
    const Strips strips(grad_map);
    for_each_part(strips.count() * height, kTaps * kTaps * width * strips.most_lanes(), [&](int64_t begin, int64_t end) {
      ShiftAddGradRows<T> rows(grad_map, map_of<T>(grad_planes), strips.most_lanes());
      for (int64_t r = begin; r < end; ++r) rows.rows(strips[r / height], r % height);
    });
  });
  return grad_planes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(a2s, CPU, m) {
  m.impl("interp_shift_add", TORCH_BOX(&interp_shift_add_cpu));
  m.impl("interp_shift_add_backward", TORCH_BOX(&interp_shift_add_backward_cpu));
}
