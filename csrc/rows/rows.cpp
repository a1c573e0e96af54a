// The parts of the row engine that depend on no operator, for every dtype.
#include "gather_rows.h"
#include "interleaved_rows.h"
#include "planar_rows.h"

namespace a2s {

template <class From, class To>
A2S_CLONES void convert(const From* from, int64_t count, To* to) {
  A2S_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

template <class T>
A2S_CLONES void lerp_row(const Lerp<T>& rows, int64_t count, acc_t<T>* out) {
  for_each_value<acc_t<T>>(count, [&](int64_t i, auto kind) {
    __builtin_prefetch(rows.high + i + kPrefetchBytes / sizeof(T));
    store_values(out + i, rows.template at<decltype(kind)>(i));
  });
}

template <class Acc>
Columns<Acc>::Columns(const Axis& axis) : low(axis.out), high(axis.out), lambda(axis.out) {
  for (int64_t x = 0; x < axis.out; ++x) {
    const Tap tap = axis.tap(x);
    low[x] = static_cast<Index>(tap.low);
    high[x] = static_cast<Index>(tap.high);
    lambda[x] = tap.lambda;
  }
  if (!kHasLanes<Acc> || axis.in < kLanes || axis.out < kLanes) return;
  const auto last_start = static_cast<Index>(axis.in - kLanes);
  for (int64_t start = (axis.out - 1) / kLanes * kLanes; start >= 0; start -= kLanes) {
    const int64_t first = std::min(start, axis.out - kLanes);
    const Index from_low = std::min(low[first], last_start), from_high = std::min(high[first], last_start);
    groups.push_back({static_cast<Index>(first), from_low, from_high});
    for (int64_t x = first; x < first + kLanes; ++x) {
      group_low.push_back(low[x] - from_low);
      group_high.push_back(high[x] - from_high);
      if (group_low.back() >= kLanes || group_high.back() >= kLanes) {
        groups.clear();
        return;
      }
    }
  }
}

template <class From, class Acc>
A2S_CLONES void resize_width(const Columns<Acc>& columns, const From* source, Acc* out) {
  const Acc* lambda = columns.lambda.data();
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (kHasLanes<Acc>) {
    const auto *group_low = columns.group_low.data(), *group_high = columns.group_high.data();
    for (const auto& group : columns.groups) {
      const auto low = __builtin_shuffle(load_values<Lanes<Acc>>(source + group.low), load_lanes(group_low));
      const auto high = __builtin_shuffle(load_values<Lanes<Acc>>(source + group.high), load_lanes(group_high));
      store_values(out + group.first, lerp(low, high, load_lanes(lambda + group.first)));
      group_low += kLanes;
      group_high += kLanes;
    }
    if (!columns.groups.empty()) return;
  }
#endif
  const auto width = static_cast<int64_t>(columns.low.size());
  const auto *low = columns.low.data(), *high = columns.high.data();
  for (int64_t x = 0; x < width; ++x) {
    out[x] = lerp(static_cast<Acc>(source[low[x]]), static_cast<Acc>(source[high[x]]), lambda[x]);
  }
}

template <class T>
PlanarRows<T>::PlanarRows(const Map<const T>& map, const Resize& resize)
    : in_(map, false), taps_(resize.copies ? nullptr : std::make_shared<const Taps>(resize)), source_(map.w),
      copied_(taps_ ? 0 : map.w), zeros_(taps_ ? 0 : map.w), resized_(taps_ ? resize.x.out : 0) {}

template <class T>
PlanarRows<T>::Taps::Taps(const Resize& resize) : columns(resize.x) {
  for (int64_t y = 0; y < resize.y.out; ++y) rows.push_back(resize.y.tap(y));
}

template <class T>
InterleavedRows<T>::InterleavedRows(const Map<const T>& map, const Resize& resize)
    : in_(map, true), resize_(resize), source_(in_.values()), blended_(kBlends ? in_.values() : 0),
      zeros_(resize.copies ? map.c : 0) {
  if (resize.copies) return;
  for (int64_t x = 0; x < resize.x.out; ++x) {
    const Tap tap = resize.x.tap(x);
    if (runs_.empty() || tap.low > runs_.back().end) runs_.push_back({tap.low, tap.low});
    runs_.back().end = tap.high + 1;
    columns_.push_back(tap);
  }
}

template <class Acc>
AxisReaders<Acc>::AxisReaders(const Axis& axis) {
  for (int64_t i = 0; i < axis.in; ++i) {
    int64_t first, last;
    axis.readers(i, first, last);
    while (first <= last && axis.template weight<Acc>(first, i) == 0) ++first;
    while (first <= last && axis.template weight<Acc>(last, i) == 0) --last;
    pixels.push_back({first, last + 1, weights.size()});
    reach = std::max(reach, last + 1 - first);
    for (int64_t o = first; o <= last; ++o) weights.push_back(axis.template weight<Acc>(o, i));
  }
}

template <class Acc>
ReaderColumns<Acc>::ReaderColumns(const Axis& axis) : AxisReaders<Acc>(axis) {
  if (!kHasLanes<Acc>) return;
  for (int64_t j = 0; j < axis.in; ++j) {
    const int64_t distance = pixels[j].first - pixels[j / kLanes * kLanes].first;
    if (distance < 0 || distance >= 2 * kLanes) {
      group_first.clear();
      return;
    }
    group_first.push_back(static_cast<Index>(distance));
  }
  group_weights.resize(reach * axis.in);
  for (int64_t j = 0; j < axis.in; ++j) {
    for (int64_t x = pixels[j].first; x < pixels[j].end; ++x) {
      group_weights[(x - pixels[j].first) * axis.in + j] = weights[pixels[j].weights + x - pixels[j].first];
    }
  }
}

template <class Acc>
A2S_CLONES void gather_columns(const ReaderColumns<Acc>& columns, const Acc* row, Acc* out) {
  const auto width = static_cast<int64_t>(columns.pixels.size());
  int64_t j = 0;
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (kHasLanes<Acc>) {
    for (; !columns.group_first.empty() && j + kLanes <= width; j += kLanes) {
      const auto lane = load_lanes(&columns.group_first[j]);
      const Acc* first = row + columns.pixels[j].first;
      const Acc* weight = &columns.group_weights[j];
      Lanes<Acc> sum{};
      for (int64_t r = 0; r < columns.reach; ++r) {
        sum += load_lanes(weight + r * width) *
               __builtin_shuffle(load_lanes(first + r), load_lanes(first + r + kLanes), lane);
      }
      store_values(out + j, sum);
    }
  }
#endif
  for (; j < width; ++j) {
    const Readers& pixel = columns.pixels[j];
    const Acc *weight = &columns.weights[pixel.weights], *read = row + pixel.first;
    const auto term = [=](int64_t i, auto& terms) {
      using V = std::decay_t<decltype(terms[0])>;
      terms[0] = load_values<V>(weight + i) * load_values<V>(read + i);
    };
    out[j] = sums_of<Acc, 1>(pixel.end - pixel.first, term)[0];
  }
}

template <class Acc>
GatheredRows<Acc>::GatheredRows(const Resize& resize, int64_t channels)
    : resize_(resize), channels_(channels), rows_(resize.y), columns_(resize.x),
      column_sum_(channels == 1 ? resize.x.out + columns_.padding() : 0) {}

template void convert(const float*, int64_t, float*);
template void convert(const float*, int64_t, BFloat16*);
template void convert(const float*, int64_t, uint8_t*);
template void convert(const double*, int64_t, double*);
template void convert(const double*, int64_t, uint8_t*);
template void convert(const BFloat16*, int64_t, float*);
template void convert(const BFloat16*, int64_t, BFloat16*);
template void convert(const uint8_t*, int64_t, uint8_t*);
template void lerp_row(const Lerp<float>&, int64_t, float*);
template void lerp_row(const Lerp<double>&, int64_t, double*);
template void lerp_row(const Lerp<BFloat16>&, int64_t, float*);
template void resize_width(const Columns<float>&, const float*, float*);
template void resize_width(const Columns<double>&, const double*, double*);
template void resize_width(const Columns<float>&, const BFloat16*, float*);
template void gather_columns(const ReaderColumns<float>&, const float*, float*);
template void gather_columns(const ReaderColumns<double>&, const double*, double*);
template Columns<float>::Columns(const Axis&);
template Columns<double>::Columns(const Axis&);
template AxisReaders<float>::AxisReaders(const Axis&);
template AxisReaders<double>::AxisReaders(const Axis&);
template ReaderColumns<float>::ReaderColumns(const Axis&);
template ReaderColumns<double>::ReaderColumns(const Axis&);
template PlanarRows<float>::PlanarRows(const Map<const float>&, const Resize&);
template PlanarRows<double>::PlanarRows(const Map<const double>&, const Resize&);
template PlanarRows<BFloat16>::PlanarRows(const Map<const BFloat16>&, const Resize&);
template InterleavedRows<float>::InterleavedRows(const Map<const float>&, const Resize&);
template InterleavedRows<double>::InterleavedRows(const Map<const double>&, const Resize&);
template InterleavedRows<BFloat16>::InterleavedRows(const Map<const BFloat16>&, const Resize&);
template GatheredRows<float>::GatheredRows(const Resize&, int64_t);
template GatheredRows<double>::GatheredRows(const Resize&, int64_t);

}  // namespace a2s
