// The passes over all pixels or all lattice vertices that take most of the time. Each works on rows of float32
// channels.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

namespace a2s::crf {

// std::make_unique_for_overwrite of C++20: the threads that fill the memory are the first to touch it.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// `count` uninitialised rows of channels. The width of a row is `channels`, rounded up to whole SIMD vectors.
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t count, int channels)
      : width_((channels + kUnit - 1) / kUnit * kUnit), data_(uninitialized<Unit>(count * width_ / kUnit)) {}

  int width() const { return width_; }
  float* operator[](int64_t row) { return data_[0].channels + row * width_; }
  const float* operator[](int64_t row) const { return data_[0].channels + row * width_; }
  void swap(Matrix& other) { data_.swap(other.data_); }

 private:
  static constexpr int kUnit = 8;
  struct alignas(kUnit * sizeof(float)) Unit {
    float channels[kUnit];
  };

  int width_ = 0;
  std::unique_ptr<Unit[]> data_;
};

// An entry of a sparse matrix: the weight of a row.
struct Share {
  int32_t row;
  float weight;
};

// The two vertices next to one along an axis of the lattice.
struct Neighbours {
  int32_t before, after;
};

// A sparse matrix, with `per_row` entries in each of its rows, times `values`.
struct Slice {
  const Matrix* values;
  const Share* shares;
  int per_row;
};

// Each pass computes the rows [begin, end) of its result. They are independent of each other, so threads change no bit.

// sums[i] = the sum of weight * values[row] over the shares [share_begin[i], share_begin[i + 1]).
void splat(const Matrix& values, const Share* shares, const int64_t* share_begin, Matrix& sums, int64_t begin,
           int64_t end);

// blurred[i] = values[i] + (the row before + the row after) / 2.
void blur(const Matrix& values, const Neighbours* neighbours, Matrix& blurred, int64_t begin, int64_t end);

// q[i] = softmax(unary[i] + row i of every slice). A channel of kPadding becomes 0, and so does one that is more than
// 20 below the largest, as in the authors' fast_exp.
constexpr float kPadding = -std::numeric_limits<float>::max();
void update(const Matrix& unary, const Slice* slices, int count, Matrix& q, int64_t begin, int64_t end);

}  // namespace a2s::crf
