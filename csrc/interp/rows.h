// CPU loops over maps, a row at a time. In a channels_last map a row holds all channels of its pixels ("lanes") and an
// image is one plane; otherwise a row holds one channel and every channel is a plane. Rows are worked on in the
// accumulation type and side by side in memory, so that the inner loops vectorise in both layouts.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "interp.h"

namespace a2s {

// Row `y` of a plane is `width` pixels of `lanes` values.
template <class T>
class Rows {
 public:
  using Acc = acc_t<T>;

  Rows(const Map<T>& map, bool lanes_are_channels)
      : map_(map), lanes_(lanes_are_channels ? map.c : 1), planes_per_image_(map.c / lanes_) {}

  int64_t lanes() const { return lanes_; }
  int64_t planes_per_image() const { return planes_per_image_; }
  int64_t planes() const { return map_.n * planes_per_image_; }
  int64_t values() const { return map_.w * lanes_; }

  void load(int64_t plane, int64_t y, Acc* row) const {
    const T* first = start(plane, y);
    if (contiguous()) {
      for (int64_t i = 0; i < values(); ++i) row[i] = static_cast<Acc>(first[i]);
      return;
    }
    for (int64_t x = 0; x < map_.w; ++x) {
      for (int64_t l = 0; l < lanes_; ++l) *row++ = static_cast<Acc>(first[x * map_.stride_w + l * map_.stride_c]);
    }
  }

  void store(int64_t plane, int64_t y, const Acc* row) const {
    T* first = start(plane, y);
    if (contiguous()) {
      for (int64_t i = 0; i < values(); ++i) first[i] = static_cast<T>(row[i]);
      return;
    }
    for (int64_t x = 0; x < map_.w; ++x) {
      for (int64_t l = 0; l < lanes_; ++l) first[x * map_.stride_w + l * map_.stride_c] = static_cast<T>(*row++);
    }
  }

 private:
  T* start(int64_t plane, int64_t y) const { return &map_.at(plane / planes_per_image_, plane % planes_per_image_, y, 0); }
  bool contiguous() const { return map_.stride_w == lanes_ && (lanes_ == 1 || map_.stride_c == 1); }

  Map<T> map_;
  int64_t lanes_, planes_per_image_;
};

// Rows of Interp's result. Consecutive result rows read the same input rows, so the two that were last resized along
// their width are kept.
template <class T>
class ResizedRows {
 public:
  using Acc = acc_t<T>;

  ResizedRows(const Map<const T>& map, const Resize& resize, bool lanes_are_channels)
      : in_(map, lanes_are_channels), resize_(resize), source_(in_.values()), result_(resize.x.out * in_.lanes()) {
    if (resize_.copies) return;
    for (Kept& kept : kept_) kept.row.resize(result_.size());
    for (int64_t x = 0; x < resize_.x.out; ++x) columns_.push_back(resize_.x.tap(x));
  }

  // Valid until the next call.
  const Acc* row(int64_t plane, int64_t y) {
    if (resize_.copies) {
      in_.load(plane, y, result_.data());
      return result_.data();
    }
    const Tap tap = resize_.y.tap(y);
    const Acc* low = widened(plane, tap.low);
    const Acc* high = widened(plane, tap.high);
    const Acc lambda = tap.lambda;
    for (size_t i = 0; i < result_.size(); ++i) result_[i] = (1 - lambda) * low[i] + lambda * high[i];
    return result_.data();
  }

 private:
  struct Kept {
    int64_t plane = -1, y = -1;
    std::vector<Acc> row;
  };

  // Input row y resized along its width. Neighbouring rows have places of their own.
  const Acc* widened(int64_t plane, int64_t y) {
    Kept& kept = kept_[y & 1];
    if (kept.plane == plane && kept.y == y) return kept.row.data();
    kept.plane = plane;
    kept.y = y;
    in_.load(plane, y, source_.data());
    const int64_t lanes = in_.lanes();
    Acc* out = kept.row.data();
    for (const Tap& tap : columns_) {
      const Acc lambda = tap.lambda;
      const Acc *low = &source_[tap.low * lanes], *high = &source_[tap.high * lanes];
      for (int64_t l = 0; l < lanes; ++l) *out++ = (1 - lambda) * low[l] + lambda * high[l];
    }
    return kept.row.data();
  }

  Rows<const T> in_;
  Resize resize_;
  std::vector<Tap> columns_;
  std::vector<Acc> source_, result_;
  Kept kept_[2];
};

// Rows of Interp's adjoint: input row i gathers, first down the result rows that read it, then along them.
template <class Acc>
class GatheredRows {
 public:
  GatheredRows(const Resize& resize, int64_t lanes)
      : resize_(resize), lanes_(lanes), loaded_(resize.x.out * lanes), column_sum_(resize.x.out * lanes),
        result_(resize.x.in * lanes) {
    if (resize_.copies) return;
    for (int64_t j = 0; j < resize_.x.in; ++j) {
      Column column;
      resize_.x.readers(j, column.first, column.last);
      column.weights = weights_.size();
      columns_.push_back(column);
      for (int64_t x = column.first; x <= column.last; ++x) weights_.push_back(resize_.x.template weight<Acc>(x, j));
    }
  }

  // load(y, row) fills in row y of the result's gradient. Valid until the next call.
  template <class Load>
  const Acc* row(int64_t i, const Load& load) {
    if (resize_.copies) {
      load(i, result_.data());
      return result_.data();
    }
    std::fill(column_sum_.begin(), column_sum_.end(), Acc(0));
    int64_t first, last;
    resize_.y.readers(i, first, last);
    for (int64_t y = first; y <= last; ++y) {
      load(y, loaded_.data());
      const Acc weight = resize_.y.template weight<Acc>(y, i);
      for (size_t k = 0; k < loaded_.size(); ++k) column_sum_[k] += weight * loaded_[k];
    }
    std::fill(result_.begin(), result_.end(), Acc(0));
    for (size_t j = 0; j < columns_.size(); ++j) {
      const Column& column = columns_[j];
      for (int64_t x = column.first; x <= column.last; ++x) {
        const Acc weight = weights_[column.weights + (x - column.first)];
        for (int64_t l = 0; l < lanes_; ++l) result_[j * lanes_ + l] += weight * column_sum_[x * lanes_ + l];
      }
    }
    return result_.data();
  }

 private:
  struct Column {
    int64_t first, last;
    size_t weights;  // where the weights of first .. last begin
  };

  Resize resize_;
  int64_t lanes_;
  std::vector<Acc> loaded_, column_sum_, result_, weights_;
  std::vector<Column> columns_;
};

// Rows for one task of parallel_for: enough work to be worth a thread.
inline int64_t row_grain(int64_t values_per_row) { return std::max<int64_t>(1, 16384 / values_per_row); }

// Fills grad_in, the gradient of a map under `resize`. load(plane, y, row) fills in row y of the result's gradient.
template <class T, class MakeLoad>
void gather_rows(const Map<T>& grad_in, const Resize& resize, const MakeLoad& make_load) {
  const Rows<T> out(grad_in, grad_in.channels_last);
  torch::stable::parallel_for(
      0, out.planes() * grad_in.h, row_grain(resize.x.out * out.lanes()), [&](int64_t begin, int64_t end) {
        GatheredRows<acc_t<T>> gathered(resize, out.lanes());
        auto load = make_load();
        for (int64_t r = begin; r < end; ++r) {
          const int64_t plane = r / grad_in.h, i = r % grad_in.h;
          out.store(plane, i, gathered.row(i, [&](int64_t y, acc_t<T>* row) { load(plane, y, row); }));
        }
      });
}

}  // namespace a2s
