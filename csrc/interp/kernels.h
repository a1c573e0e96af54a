// GPU kernels that resize maps, alone or several together, and their adjoints, and the host code that launches them.
#pragma once

#include <vector>

#include "../support/launch.h"
#include "interp.h"

namespace a2s {

// A thread computes channels c, c + groups, ... of its pixel, so that the taps are worked out once for several channels
// and neighbouring threads stay neighbours in memory.
constexpr int64_t kChannelsPerThread = 8;

A2S_HD int64_t channel_groups(int64_t channels) { return (channels + kChannelsPerThread - 1) / kChannelsPerThread; }

// Resized maps, pixel by pixel: Op::pixel(element, is_first) gives what the channels of a pixel share, and
// Op::write(pixel, element, v) takes the values v[s] of one channel. For planar results: a flat kernel whose threads
// follow each other along x.
template <class T, int S, class Op>
struct PlanarResize {
  ScaleSet<T, S> scales;
  Op op;
  int64_t n, c, h, w;

  int64_t threads() const { return n * channel_groups(c) * h * w; }

  A2S_HD void operator()(int64_t i) const {
    const int64_t groups = channel_groups(c);
    Element e = element_at(i, groups, h, w, false);
    PixelTaps taps[S];
    for (int s = 0; s < S; ++s) taps[s] = taps_at(scales.resize[s], e.y, e.x);
    const typename Op::Pixel pixel = op.pixel(e, e.c == 0);
    for (; e.c < c; e.c += groups) {
      acc_t<T> v[S];
      for (int s = 0; s < S; ++s) v[s] = sample(scales.map[s], scales.resize[s].copies, taps[s], e.n, e.c);
      op.write(pixel, e, v);
    }
  }
};

// The same for channels_last results: a block kernel that works out the taps of kPixels pixels once and then walks
// along their channels as they follow each other in memory.
template <class T, int S, class Op>
struct InterleavedResize {
  static constexpr int kPixels = 32;
  ScaleSet<T, S> scales;
  Op op;
  int64_t n, c, h, w;

  struct Shared {
    Element element[kPixels];
    PixelTaps taps[kPixels][S];
    typename Op::Pixel pixel[kPixels];
  };

  int64_t blocks() const { return (n * h * w + kPixels - 1) / kPixels; }

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    const int64_t i = block * kPixels + thread;
    if (thread >= kPixels || i >= n * h * w) return;
    const Element e = element_at(i, 1, h, w, false);
    shared.element[thread] = e;
    for (int s = 0; s < S; ++s) shared.taps[thread][s] = taps_at(scales.resize[s], e.y, e.x);
    shared.pixel[thread] = op.pixel(e, true);
  }

  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    const int64_t left = n * h * w - block * kPixels;
    const int here = left < kPixels ? static_cast<int>(left) : kPixels;
    for_each_channel(here, c, thread, [&](int p, int64_t channel) {
      Element e = shared.element[p];
      e.c = channel;
      acc_t<T> v[S];
      for (int s = 0; s < S; ++s) v[s] = sample(scales.map[s], scales.resize[s].copies, shared.taps[p][s], e.n, e.c);
      op.write(shared.pixel[p], e, v);
    });
  }
};

// Launches the kernel that suits the layout of `like`, a result of the resize.
template <class Launch, class T, int S, class Op>
void launch_resize(const Tensor& like, const ScaleSet<T, S>& scales, const Op& op) {
  const int64_t n = like.size(0), c = like.size(1), h = like.size(2), w = like.size(3);
  if (is_channels_last(like)) {
    const InterleavedResize<T, S, Op> kernel{scales, op, n, c, h, w};
    Launch::run_blocks(like, kernel.blocks(), kernel);
  } else {
    const PlanarResize<T, S, Op> kernel{scales, op, n, c, h, w};
    Launch::run(like, kernel.threads(), kernel);
  }
}

// Interp of channels_last maps whose channels can be loaded V at a time.
template <class T, int V>
struct PackedInterp {
  static constexpr int kPixels = 32;
  Map<const T> in;
  Map<T> out;
  Resize resize;

  struct Shared {
    Element element[kPixels];
    PixelTaps taps[kPixels];
  };

  int64_t blocks() const { return (out.n * out.h * out.w + kPixels - 1) / kPixels; }

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    const int64_t i = block * kPixels + thread;
    if (thread >= kPixels || i >= out.n * out.h * out.w) return;
    const Element e = element_at(i, 1, out.h, out.w, false);
    shared.element[thread] = e;
    shared.taps[thread] = taps_at(resize, e.y, e.x);
  }

  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    using Acc = acc_t<T>;
    const int64_t left = out.n * out.h * out.w - block * kPixels;
    const int here = left < kPixels ? static_cast<int>(left) : kPixels;
    for_each_channel(here, out.c / V, thread, [&](int p, int64_t pack) {
      const Element& e = shared.element[p];
      const PixelTaps& at = shared.taps[p];
      const auto load = [&](int64_t y, int64_t x) { return Pack<T, V>::load(&in.at(e.n, pack * V, y, x)); };
      Pack<T, V> result = load(at.y.low, at.x.low);
      if (!resize.copies) {
        const Pack<T, V> a00 = result, a01 = load(at.y.low, at.x.high);
        const Pack<T, V> a10 = load(at.y.high, at.x.low), a11 = load(at.y.high, at.x.high);
        const Acc ly = at.y.lambda, lx = at.x.lambda;
        for (int k = 0; k < V; ++k) {
          const Acc low = lerp(Acc(a00.v[k]), Acc(a01.v[k]), lx), high = lerp(Acc(a10.v[k]), Acc(a11.v[k]), lx);
          result.v[k] = static_cast<T>(lerp(low, high, ly));
        }
      }
      result.store(&out.at(e.n, pack * V, e.y, e.x));
    });
  }
};

// Interp's own Op: the value as it is.
template <class T>
struct StoreValue {
  Map<T> out;

  struct Pixel {};
  A2S_HD Pixel pixel(const Element&, bool) const { return {}; }
  A2S_HD void write(const Pixel&, const Element& e, const acc_t<T> (&v)[1]) const {
    out.at(e.n, e.c, e.y, e.x) = static_cast<T>(v[0]);
  }
};

// The adjoint of a resize, for one map: element (n, c, i, j) of its gradient is the sum over the outputs (y, x) that
// read it of their weight times what they pass back, value.factor(n, y, x) * value.at(n, c, y, x).
//
// Planar: a thread gathers several channels of a pixel. Channels_last: a block works out the weights of the readers of
// kPixels pixels once and then walks along their channels, V at a time.
template <class T, class Value, int V = 1>
struct Gather {
  using Acc = acc_t<T>;
  static constexpr int kPixels = 16, kTerms = kBlockThreads / kPixels;

  Value value;
  Map<T> grad_in;
  Resize resize;

  struct Readers {
    int64_t y_first, y_last, x_first, x_last;
    A2S_HD int64_t rows() const { return y_last - y_first + 1; }
    A2S_HD int64_t columns() const { return x_last - x_first + 1; }
  };
  struct Shared {
    Element element[kPixels];
    Readers readers[kPixels];
    Acc weight[kPixels][kTerms];
  };

  int64_t blocks() const {
    if (grad_in.channels_last) return (grad_in.n * grad_in.h * grad_in.w + kPixels - 1) / kPixels;
    const int64_t threads = grad_in.n * channel_groups(grad_in.c) * grad_in.h * grad_in.w;
    return (threads + kBlockThreads - 1) / kBlockThreads;
  }

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    if (!grad_in.channels_last) return;
    const int p = thread / kTerms, term = thread % kTerms;
    const int64_t i = block * kPixels + p;
    if (i >= grad_in.n * grad_in.h * grad_in.w) return;
    const Element e = element_at(i, 1, grad_in.h, grad_in.w, false);
    const Readers readers = readers_of(e);
    if (term == 0) {
      shared.element[p] = e;
      shared.readers[p] = readers;
    }
    if (readers.rows() * readers.columns() > kTerms || term >= readers.rows() * readers.columns()) return;
    const auto columns = static_cast<int>(readers.columns());
    shared.weight[p][term] = weight(e, readers.y_first + term / columns, readers.x_first + term % columns);
  }

  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    if (grad_in.channels_last) {
      const int64_t left = grad_in.n * grad_in.h * grad_in.w - block * kPixels;
      const int here = left < kPixels ? static_cast<int>(left) : kPixels;
      for_each_channel(here, grad_in.c / V, thread, [&](int p, int64_t pack) {
        Element e = shared.element[p];
        e.c = pack * V;
        const Readers& readers = shared.readers[p];
        const bool prepared = readers.rows() * readers.columns() <= kTerms;
        Acc sum[V] = {};
        int term = 0;
        for (int64_t y = readers.y_first; y <= readers.y_last; ++y) {
          for (int64_t x = readers.x_first; x <= readers.x_last; ++x, ++term) {
            const Acc k = prepared ? shared.weight[p][term] : weight(e, y, x);
            value.template add<V>(k, e.n, e.c, y, x, sum);
          }
        }
        Pack<T, V> result;
        for (int k = 0; k < V; ++k) result.v[k] = static_cast<T>(sum[k]);
        result.store(&grad_in.at(e.n, e.c, e.y, e.x));
      });
      return;
    }
    const int64_t groups = channel_groups(grad_in.c), i = block * kBlockThreads + thread;
    if (i >= grad_in.n * groups * grad_in.h * grad_in.w) return;
    const Element e = element_at(i, groups, grad_in.h, grad_in.w, false);
    const Readers readers = readers_of(e);
    Acc sum[kChannelsPerThread] = {};
    for (int64_t y = readers.y_first; y <= readers.y_last; ++y) {
      for (int64_t x = readers.x_first; x <= readers.x_last; ++x) {
        const Acc k = weight(e, y, x);
        for (int g = 0; g < kChannelsPerThread; ++g) {
          const int64_t c = e.c + g * groups;
          if (c < grad_in.c) sum[g] += k * value.at(e.n, c, y, x);
        }
      }
    }
    for (int g = 0; g < kChannelsPerThread; ++g) {
      const int64_t c = e.c + g * groups;
      if (c < grad_in.c) grad_in.at(e.n, c, e.y, e.x) = static_cast<T>(sum[g]);
    }
  }

 private:
  A2S_HD Readers readers_of(const Element& e) const {
    if (resize.copies) return {e.y, e.y, e.x, e.x};
    Readers readers;
    resize.y.readers(e.y, readers.y_first, readers.y_last);
    resize.x.readers(e.x, readers.x_first, readers.x_last);
    return readers;
  }
  A2S_HD Acc weight(const Element& e, int64_t y, int64_t x) const {
    const Acc factor = value.factor(e.n, y, x);
    if (resize.copies) return factor;
    return resize.y.template weight<Acc>(y, e.y) * resize.x.template weight<Acc>(x, e.x) * factor;
  }
};

// The gathers of S maps in one launch.
template <class T, class Value, int S, int V = 1>
struct GatherAll {
  using Part = Gather<T, Value, V>;
  Part part[S];
  int64_t first_block[S + 1];

  using Shared = typename Part::Shared;

  // value_of(s) is what outputs pass back to map s.
  template <class ValueOf>
  GatherAll(const std::vector<Tensor>& grads_in, int64_t height, int64_t width, const ValueOf& value_of) {
    first_block[0] = 0;
    for (int s = 0; s < S; ++s) {
      const Map<T> grad_in = map_of<T>(grads_in[s]);
      part[s] = {value_of(s), grad_in, Resize(grad_in.h, grad_in.w, height, width)};
      first_block[s + 1] = first_block[s] + part[s].blocks();
    }
  }

  int64_t blocks() const { return first_block[S]; }

  A2S_HD void prepare(int64_t block, int thread, Shared& shared) const {
    for (int s = 0; s < S; ++s) {
      if (block >= first_block[s] && block < first_block[s + 1]) {
        part[s].prepare(block - first_block[s], thread, shared);
      }
    }
  }
  A2S_HD void finish(int64_t block, int thread, const Shared& shared) const {
    for (int s = 0; s < S; ++s) {
      if (block >= first_block[s] && block < first_block[s + 1]) {
        part[s].finish(block - first_block[s], thread, shared);
      }
    }
  }
};

// What an output passes back to a map: factor * grad. Interp's own factor is 1.
template <class T>
struct ScaledGrad {
  Map<const T> grad;
  acc_t<T> scale;

  A2S_HD acc_t<T> factor(int64_t, int64_t, int64_t) const { return scale; }
  A2S_HD acc_t<T> at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return static_cast<acc_t<T>>(grad.at(n, c, y, x));
  }
  template <int V>
  A2S_HD void add(acc_t<T> weight, int64_t n, int64_t c, int64_t y, int64_t x, acc_t<T> (&sum)[V]) const {
    const auto grads = Pack<T, V>::load(&grad.at(n, c, y, x));
    for (int k = 0; k < V; ++k) sum[k] += weight * static_cast<acc_t<T>>(grads.v[k]);
  }
};

template <class Launch>
void interp_into(const Tensor& x, const Tensor& y) {
  dispatch("interp", x, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPackBytes / sizeof(T);
    const Map<const T> in = map_of<const T>(x);
    const Map<T> out = map_of<T>(y);
    if (packs<V>(in) && packs<V>(out)) {
      const PackedInterp<T, V> kernel{in, out, Resize(in.h, in.w, out.h, out.w)};
      Launch::run_blocks(x, kernel.blocks(), kernel);
    } else {
      launch_resize<Launch, T, 1>(y, ScaleSet<T, 1>({x}, out.h, out.w), StoreValue<T>{out});
    }
  });
}

template <class Launch>
Tensor interp(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  interp_into<Launch>(x, y);
  return y;
}

template <class Launch>
Tensor interp_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_x = empty_resized("interp_backward", "grad", grad, height, width);
  dispatch("interp_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kPackBytes / sizeof(T);
    const auto value_of = [&](int) { return ScaledGrad<T>{map_of<const T>(grad), 1}; };
    if (packs<V>(map_of<const T>(grad)) && packs<V>(map_of<T>(grad_x))) {
      const GatherAll<T, ScaledGrad<T>, 1, V> kernel({grad_x}, grad.size(2), grad.size(3), value_of);
      Launch::run_blocks(grad, kernel.blocks(), kernel);
    } else {
      const GatherAll<T, ScaledGrad<T>, 1> kernel({grad_x}, grad.size(2), grad.size(3), value_of);
      Launch::run_blocks(grad, kernel.blocks(), kernel);
    }
  });
  return grad_x;
}

template <class Launch>
Tensor interp_concat(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  Tensor y = empty_concat(features, height, width);
  for_each_slice(features, y, interp_into<Launch>);
  return y;
}

}  // namespace a2s
