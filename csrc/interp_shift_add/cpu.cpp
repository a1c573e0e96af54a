// The CPU loops of interp_shift_add and its adjoint, on the row engine (rows/rows.h).
#include <torch/csrc/stable/library.h>

#include "../rows/gather_rows.h"
#include "interp_shift_add.h"

namespace {

using namespace a2s;

// Channels [first, first + channels) of image n, which are processed together. In a planar map a strip is one channel.
// In a channels_last map it has 2 to 128, so that a row of sums stays in cache.
struct Strip {
  int64_t n, first, channels;
};

// All strips of a map.
class Strips {
 public:
  template <class T>
  explicit Strips(const Map<T>& map)
      : channels_(map.c), per_image_(map.channels_last ? (map.c + 127) / 128 : map.c), count_(map.n * per_image_) {}

  int64_t count() const { return count_; }
  int64_t most_channels() const { return (channels_ + per_image_ - 1) / per_image_; }
  Strip operator[](int64_t i) const {
    const int64_t strip = i % per_image_, first = strip * channels_ / per_image_;
    return {i / per_image_, first, (strip + 1) * channels_ / per_image_ - first};
  }

 private:
  int64_t channels_, per_image_, count_;
};

// A weighted sum of rows. A row has `width` pixels of `channels` adjacent values; pixels are `stride` values apart.
template <class T>
class RowSum {
 public:
  using Acc = acc_t<T>;

  void clear() { terms_.clear(); }
  void add(const T* row, Acc weight) {
    if (weight != 0) terms_.push_back({row, weight});
  }

  // The pixels of `out` are adjacent.
  template <class Out>
  void store(int64_t stride, int64_t width, int64_t channels, Out* out) {
    if (stride == channels) {  // one long pixel
      stride = channels = width * channels;
      width = 1;
    }
    if constexpr (std::is_same_v<Out, Acc>) {
      store_sum(terms_.data(), terms_.size(), stride, width, channels, out);
    } else {
      sum_.resize(width * channels);
      store_sum(terms_.data(), terms_.size(), stride, width, channels, sum_.data());
      convert(sum_.data(), width * channels, out);
    }
  }

 private:
  struct Term {
    const T* row;
    Acc weight;
  };

  A2S_CLONES static void store_sum(const Term* terms, size_t count, int64_t stride, int64_t width, int64_t channels,
                                   Acc* out) {
    for (int64_t x = 0; x < width; ++x) {
      const auto term = [=](int64_t t) { return Term{terms[t].row + x * stride, terms[t].weight}; };
      sum_rows<Acc>(count, term, channels, nullptr, out + x * channels);
    }
  }

  std::vector<Term> terms_;
  std::vector<Acc> sum_;
};

// The rows of the result. For each dx, the planes of the three taps (dy, dx) are resized along y and summed. The sums
// are resized along x, shifted and added.
template <class T>
class ShiftAddRows {
 public:
  using Acc = acc_t<T>;

  ShiftAddRows(const Map<const T>& planes, const Map<const T>& base, const Map<T>& out, int64_t most_channels)
      : planes_(planes), base_(base), out_(out), resize_(planes.h, planes.w, out.h, out.w), columns_(resize_.x),
        base_row_(out.w * most_channels) {
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      column_sum_[dx].resize(planes.w * most_channels);
      resized_[dx].resize(most_channels == 1 ? out.w + 2 : 0);
    }
  }

  void row(const Strip& strip, int64_t y) {
    const int64_t channels = strip.channels;
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      down_.clear();
      for (int64_t dy = 0; dy < kTaps; ++dy) {
        if (y + dy < 1 || y + dy > out_.h) continue;
        const Tap tap = resize_.y.tap(y + dy - 1);
        const int64_t channel = (kTaps * dy + dx) * out_.c + strip.first;
        down_.add(&planes_.at(strip.n, channel, tap.low, 0), 1 - static_cast<Acc>(tap.lambda));
        down_.add(&planes_.at(strip.n, channel, tap.high, 0), tap.lambda);
      }
      down_.store(planes_.stride_w, planes_.w, channels, column_sum_[dx].data());
    }
    const Rows<const T> base(channels_of(base_, strip.first, channels), channels > 1);
    const Acc* start = base.read(strip.n, y, base_row_.data());
    if (channels == 1) add_planar(start, &out_.at(strip.n, strip.first, y, 0));
    else add_interleaved(start, strip, y);
  }

 private:
  void add_planar(const Acc* start, T* result) {
    along_.clear();
    along_.add(start, 1);
    for (int64_t dx = 0; dx < kTaps; ++dx) {
      resize_width(columns_, column_sum_[dx].data(), resized_[dx].data() + 1);  // the padding of 0 is at both ends
      along_.add(resized_[dx].data() + dx, 1);
    }
    along_.store(1, out_.w, 1, result);
  }

  void add_interleaved(const Acc* start, const Strip& strip, int64_t y) {
    for (int64_t x = 0; x < out_.w; ++x) {
      along_.clear();
      along_.add(start + x * strip.channels, 1);
      for (int64_t dx = 0; dx < kTaps; ++dx) {
        if (x + dx < 1 || x + dx > out_.w) continue;
        const Tap tap = resize_.x.tap(x + dx - 1);
        along_.add(column_sum_[dx].data() + tap.low * strip.channels, 1 - static_cast<Acc>(tap.lambda));
        along_.add(column_sum_[dx].data() + tap.high * strip.channels, tap.lambda);
      }
      along_.store(strip.channels, 1, strip.channels, &out_.at(strip.n, strip.first, y, x));
    }
  }

  Map<const T> planes_, base_;
  Map<T> out_;
  Resize resize_;
  Columns<Acc> columns_;
  std::vector<Acc> base_row_;
  std::array<std::vector<Acc>, kTaps> column_sum_, resized_;  // indexed by dx
  RowSum<T> down_;
  RowSum<Acc> along_;
};

// The rows of the planes' gradient. They gather from the result's gradient along y first, then along x.
template <class T>
class ShiftAddGradRows {
 public:
  using Acc = acc_t<T>;

  ShiftAddGradRows(const Map<const T>& grad, const Map<T>& grad_planes, int64_t most_channels)
      : grad_(grad), grad_planes_(grad_planes), rows_(Axis(grad_planes.h, grad.h)),
        columns_(Axis(grad_planes.w, grad.w)), column_sum_((grad.w + 2) * most_channels + columns_.padding()),
        row_(grad_planes.w) {}

  void rows(const Strip& strip, int64_t i) {
    const int64_t channels = strip.channels;
    const Readers& readers = rows_.pixels[i];
    for (int64_t dy = 0; dy < kTaps; ++dy) {
      down_.clear();
      for (int64_t v = readers.first; v < readers.end; ++v) {
        const int64_t y = v + 1 - dy;
        if (y < 0 || y >= grad_.h) continue;
        down_.add(&grad_.at(strip.n, strip.first, y, 0), rows_.weights[readers.weights + v - readers.first]);
      }
      // A pixel of 0 on either side is the padding.
      std::fill_n(column_sum_.begin(), channels, Acc(0));
      down_.store(grad_.stride_w, grad_.w, channels, column_sum_.data() + channels);
      std::fill_n(column_sum_.begin() + (grad_.w + 1) * channels, channels, Acc(0));
      for (int64_t dx = 0; dx < kTaps; ++dx) {
        const Acc* moved = column_sum_.data() + (2 - dx) * channels;
        const int64_t channel = (kTaps * dy + dx) * grad_.c + strip.first;
        if (channels == 1) gather_planar(moved, strip.n, channel, i);
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
        along_.add(moved + u * strip.channels, columns_.weights[readers.weights + u - readers.first]);
      }
      along_.store(strip.channels, 1, strip.channels, &grad_planes_.at(strip.n, channel, i, j));
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
  dispatch_cpu("interp_shift_add", planes, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<T> out = map_of<T>(y);
    const Strips strips(out);
    for_each_part(strips.count() * out.h, out.w * strips.most_channels(), [&](int64_t begin, int64_t end) {
      ShiftAddRows<T> rows(map_of<const T>(planes), map_of<const T>(base), out, strips.most_channels());
      for (int64_t r = begin; r < end; ++r) rows.row(strips[r / out.h], r % out.h);
    });
  });
  return y;
}

Tensor interp_shift_add_backward_cpu(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch_cpu("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Map<const T> grad_map = map_of<const T>(grad);
    const Strips strips(grad_map);
    const int64_t values_per_row = kTaps * kTaps * width * strips.most_channels();
    for_each_part(strips.count() * height, values_per_row, [&](int64_t begin, int64_t end) {
      ShiftAddGradRows<T> rows(grad_map, map_of<T>(grad_planes), strips.most_channels());
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
