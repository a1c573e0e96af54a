// Rows of float32 channels, and the passes over them that take the time.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

namespace a2s::crf {

// std::make_unique_for_overwrite of C++20: the memory is first touched by the threads that fill it.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// `count` rows of at least `channels` channels; what they hold at first is undefined.
class Rows {
 public:
  Rows() = default;
  Rows(int64_t count, int channels)
      : width_((channels + kUnit - 1) / kUnit * kUnit), data_(uninitialized<Unit>(count * width_ / kUnit)) {}

  int width() const { return width_; }
  float* operator[](int64_t row) { return data_[0].channels + row * width_; }
  const float* operator[](int64_t row) const { return data_[0].channels + row * width_; }
  void swap(Rows& other) { data_.swap(other.data_); }

 private:
  static constexpr int kUnit = 8;  // the widest vector
  struct alignas(kUnit * sizeof(float)) Unit {
    float channels[kUnit];
  };

  int width_ = 0;
  std::unique_ptr<Unit[]> data_;
};

// An entry of a sparse matrix: how much is taken of which row.
struct Share {
  int32_t row;
  float weight;
};

// The two rows beside one.
struct Neighbours {
  int32_t before, after;
};

// Rows times a sparse matrix of `per_row` entries a row.
struct Slice {
  const Rows* rows;
  const Share* shares;
  int per_row;
};

// For the rows i in [begin, end), each on its own, so that threads change no bit:

// sums[i] = the shares [share_begin[i], share_begin[i + 1]) of `rows`, added one after the other.
void splat(const Rows& rows, const Share* shares, const int64_t* share_begin, Rows& sums, int64_t begin, int64_t end);

// blurred[i] = rows[i] + (the row before + the row after) / 2.
void blur(const Rows& rows, const Neighbours* neighbours, Rows& blurred, int64_t begin, int64_t end);

// q[i] = softmax(unary[i] + row i of every slice). Channels of kPadding become 0, and so do those that are more than 20
// below the largest, as in the authors' fast_exp.
constexpr float kPadding = -std::numeric_limits<float>::max();
void update(const Rows& unary, const Slice* slices, int count, Rows& q, int64_t begin, int64_t end);

}  // namespace a2s::crf
