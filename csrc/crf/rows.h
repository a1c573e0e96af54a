// Rows of float32 channels, padded to whole vectors, and their weighted sums. Every sum runs in one order, whatever the
// machine and the number of threads, so that results have the same bits everywhere.
#pragma once

#include <cstdint>
#include <memory>

// A function so marked exists once for AVX2 and once for any x86-64; the loader takes the one that the machine can run.
// What it calls must be A2S_INLINE to become part of both.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define A2S_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define A2S_VECTOR_CLONES
#endif
#define A2S_INLINE inline __attribute__((always_inline))

namespace a2s::crf {

constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// std::make_unique_for_overwrite of C++20: the memory is first touched by the threads that fill it.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// `count` rows of `width` vectors; what they hold at first is undefined.
class Rows {
 public:
  Rows(int64_t count, int width) : width_(width), data_(uninitialized<Lanes>(count * width)) {}

  int width() const { return width_; }
  Lanes* operator[](int64_t row) { return data_.get() + row * width_; }
  const Lanes* operator[](int64_t row) const { return data_.get() + row * width_; }
  float& at(int64_t row, int channel) { return reinterpret_cast<float*>((*this)[row])[channel]; }
  float at(int64_t row, int channel) const { return reinterpret_cast<const float*>((*this)[row])[channel]; }
  void swap(Rows& other) { data_.swap(other.data_); }

 private:
  int width_;
  std::unique_ptr<Lanes[]> data_;
};

// An entry of a sparse matrix: how much is taken of which row.
struct Share {
  int32_t row;
  float weight;
};

// The vectors [first, first + kVectors) of add_weighted; their sums stay in registers.
template <int kVectors>
A2S_INLINE void add_weighted_part(const Rows& rows, int first, const Share* shares, int64_t count, Lanes* sum) {
  Lanes part[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) part[v] = sum[first + v];
  for (int64_t k = 0; k < count; ++k) {
    const Lanes* row = rows[shares[k].row] + first;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) part[v] += shares[k].weight * row[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[first + v] = part[v];
}

// sum += shares[0].weight * rows[shares[0].row] + ... + shares[count - 1].weight * rows[shares[count - 1].row], which
// are added one after the other.
A2S_INLINE void add_weighted(const Rows& rows, const Share* shares, int64_t count, Lanes* sum) {
  int first = 0;
  for (; rows.width() - first > 4; first += 4) add_weighted_part<4>(rows, first, shares, count, sum);
  switch (rows.width() - first) {
    case 1: return add_weighted_part<1>(rows, first, shares, count, sum);
    case 2: return add_weighted_part<2>(rows, first, shares, count, sum);
    case 3: return add_weighted_part<3>(rows, first, shares, count, sum);
    default: return add_weighted_part<4>(rows, first, shares, count, sum);
  }
}

}  // namespace a2s::crf
