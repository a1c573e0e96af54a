#include "lattice.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "parallel.h"

namespace a2s::crf {
namespace {

// The key of a vertex is a linear function of its coordinates, so that a step on the lattice adds a constant to it.
using Key = uint64_t;

// A hash table with open addressing and linear probing. Vertices are numbered from 1 in the order in which they are
// added; 0 stands for none.
class VertexTable {
 public:
  int32_t find(Key key) const { return slots_[slot_of(key)].vertex; }

  int32_t find_or_add(Key key) {
    size_t slot = slot_of(key);
    if (slots_[slot].vertex != 0) return slots_[slot].vertex;
    if (2 * keys_.size() >= slots_.size()) {
      grow();
      slot = slot_of(key);
    }
    keys_.push_back(key);
    return (slots_[slot] = {key, static_cast<int32_t>(keys_.size())}).vertex;
  }

  // keys()[v - 1] is the key of vertex v.
  const std::vector<Key>& keys() const { return keys_; }

 private:
  struct Slot {
    Key key;
    int32_t vertex;
  };

  size_t slot_of(Key key) const {
    size_t slot = key * 0x9e3779b97f4a7c15u >> shift_;  // Fibonacci hashing
    while (slots_[slot].vertex != 0 && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }

  void grow() {
    slots_.assign(2 * slots_.size(), Slot{});
    --shift_;
    for (size_t i = 0; i < keys_.size(); ++i) slots_[slot_of(keys_[i])] = {keys_[i], static_cast<int32_t>(i + 1)};
  }

  int shift_ = 52;
  std::vector<Slot> slots_ = std::vector<Slot>(size_t{1} << (64 - shift_));
  std::vector<Key> keys_;
};

// The positions of the points of a feature space on the lattice. Its vertices have d + 1 integer coordinates that sum
// to 0 and are all congruent modulo d + 1; a step along axis j adds d to coordinate j and takes 1 from every other.
template <size_t d>
class Embedding {
 public:
  using Feature = std::array<float, d>;

  Embedding(const Feature* features, int64_t points) {
    const float unit = std::sqrt(2.0 / 3.0) * (d + 1);  // gives the blur a standard deviation of 1 in the feature space
    for (size_t i = 0; i < d; ++i) scale_[i] = 1 / std::sqrt((i + 1.0) * (i + 2.0)) * unit;

    Feature low{}, high{};  // 0 included, because the constructor of Lattice may add its simplex
    for (int64_t p = 0; p < points; ++p) {
      for (size_t i = 0; i < d; ++i) {
        low[i] = std::min(low[i], features[p][i]);
        high[i] = std::max(high[i], features[p][i]);
      }
    }
    // A key has the coordinates but the first, which follows from them, as digits. Each digit has room for the vertices
    // of a simplex and their neighbours. Beyond 2^20 a float coordinate would have too few bits for its fraction.
    double keys = 1, later = 0;
    for (size_t j = d; j > 0; --j) {
      const double range = double{high[j - 1]} * scale_[j - 1] - double{low[j - 1]} * scale_[j - 1];
      const double extent = std::ceil(j * range + later) + 4 * (d + 1);
      later += range;
      stride_[j] = static_cast<Key>(keys);
      keys *= extent;
      if (!(extent < 0x1p20 && keys < 0x1p63)) {
        throw std::invalid_argument("the standard deviations are too small for an image of this size");
      }
    }
    const Key all = std::accumulate(stride_.begin(), stride_.end(), Key{0});
    for (size_t j = 0; j <= d; ++j) step_[j] = (d + 1) * stride_[j] - all;
  }

  // The difference that a step along axis j makes to a key.
  Key step(size_t j) const { return step_[j]; }

  // The keys of the d + 1 vertices of the simplex around a point, and the weight of each.
  void operator()(const Feature& feature, Key* keys, Share* shares) const {
    // The point's coordinates, projected onto the hyperplane where they sum to 0.
    std::array<float, d + 1> point, vertex, offset;
    float later = 0;
    for (size_t j = d; j > 0; --j) {
      const float scaled = feature[j - 1] * scale_[j - 1];
      point[j] = later - j * scaled;
      later += scaled;
    }
    point[0] = later;

    // The nearest vertex whose coordinates are multiples of d + 1, and the ranks of the point's offsets from it. If its
    // coordinates do not sum to 0, those of the extreme ranks move by one multiple.
    constexpr float one_part = 1.f / (d + 1);
    float excess = 0;
    for (size_t j = 0; j <= d; ++j) {
      const float multiple = std::nearbyint(point[j] * one_part);
      excess += multiple;
      vertex[j] = multiple * (d + 1);
      offset[j] = point[j] - vertex[j];
    }
    std::array<int, d + 1> rank;
    rank.fill(static_cast<int>(excess));
    for (size_t i = 0; i < d; ++i) {
      for (size_t j = i + 1; j <= d; ++j) {
        const bool less = offset[i] < offset[j];
        rank[i] += less;
        rank[j] += !less;
      }
    }
    constexpr int corners = d + 1;
    for (size_t j = 0; j <= d; ++j) {
      const int wrapped = rank[j] < 0 ? corners : rank[j] >= corners ? -corners : 0;
      rank[j] += wrapped;
      vertex[j] += wrapped;
    }

    // The other vertices of the simplex follow by one step back along each axis, from the last rank to the first.
    std::array<float, d + 1> descending;
    std::array<size_t, d + 1> axis;
    Key key = 0;
    for (size_t j = 0; j <= d; ++j) {
      descending[rank[j]] = (point[j] - vertex[j]) * one_part;
      axis[rank[j]] = j;
      key += static_cast<Key>(static_cast<int64_t>(vertex[j])) * stride_[j];
    }
    keys[0] = key;
    shares[0].weight = descending[d] + (1 - descending[0]);
    for (size_t k = 1; k <= d; ++k) {
      keys[k] = keys[k - 1] - step_[axis[d + 1 - k]];
      shares[k].weight = descending[d - k] - descending[d + 1 - k];
    }
  }

 private:
  Feature scale_;
  std::array<Key, d + 1> stride_{}, step_;
};

}  // namespace

template <size_t d>
Lattice::Lattice(const std::array<float, d>* features, int64_t points, int channels, int threads)
    : points_(points), corners_(d + 1), slice_(uninitialized<Share>(points * (d + 1))) {
  const Embedding<d> embedding(features, points);
  VertexTable table;
  {
    const auto keys = uninitialized<Key>(points * corners_);
    parallel_for(threads, points, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) embedding(features[p], &keys[p * corners_], &slice_[p * corners_]);
    });
    for (int64_t i = 0; i < points * corners_; ++i) slice_[i].row = table.find_or_add(keys[i]);
  }
  if (points % 4 != 0) {  // the authors' program pads its vectors of 4 with points of feature 0
    std::array<Key, d + 1> keys;
    std::array<Share, d + 1> shares;
    embedding({}, keys.data(), shares.data());
    for (const Key key : keys) table.find_or_add(key);
  }

  vertices_ = static_cast<int64_t>(table.keys().size()) + 1;
  neighbours_ = uninitialized<Neighbours>(corners_ * vertices_);
  for (int j = 0; j < corners_; ++j) neighbours_[j * vertices_] = {0, 0};
  parallel_for(threads, vertices_ - 1, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Key key = table.keys()[i];
      for (int j = 0; j < corners_; ++j) {
        neighbours_[j * vertices_ + i + 1] = {table.find(key - embedding.step(j)), table.find(key + embedding.step(j))};
      }
    }
  });
  sort_by_vertex();
  values_ = Matrix(vertices_, channels);
  spare_ = Matrix(vertices_, channels);
}

template Lattice::Lattice(const std::array<float, 2>*, int64_t, int, int);
template Lattice::Lattice(const std::array<float, 5>*, int64_t, int, int);

void Lattice::sort_by_vertex() {
  splat_ = uninitialized<Share>(points_ * corners_);
  splat_begin_.assign(vertices_ + 1, 0);
  for (int64_t i = 0; i < points_ * corners_; ++i) ++splat_begin_[slice_[i].row + 1];
  std::partial_sum(splat_begin_.begin(), splat_begin_.end(), splat_begin_.begin());
  std::vector<int64_t> next(splat_begin_.begin(), splat_begin_.end() - 1);
  for (int64_t p = 0; p < points_; ++p) {
    for (int k = 0; k < corners_; ++k) {
      const Share& share = slice_[p * corners_ + k];
      splat_[next[share.row]++] = {static_cast<int32_t>(p), share.weight};
    }
  }
}

void Lattice::filter(const Matrix& points, int threads) {
  parallel_for(threads, vertices_, 256, [&](int64_t begin, int64_t end) {
    splat(points, splat_.get(), splat_begin_.data(), values_, begin, end);
  });
  for (int j = 0; j < corners_; ++j) {
    parallel_for(threads, vertices_, 1024, [&](int64_t begin, int64_t end) {
      blur(values_, &neighbours_[j * vertices_], spare_, begin, end);
    });
    values_.swap(spare_);
  }
}

void Lattice::normalise(int channel, float weight, int threads) {
  parallel_for(threads, points_, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      Share* shares = &slice_[p * corners_];
      float sum = 0;
      for (int k = 0; k < corners_; ++k) sum += shares[k].weight * values_[shares[k].row][channel];
      const float scale = weight / sum;
      for (int k = 0; k < corners_; ++k) shares[k].weight *= scale;
    }
  });
}

}  // namespace a2s::crf
