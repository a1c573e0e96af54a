// Copying a map that keeps its size where its images lie in memory like those of the result: 16 bytes at once.
#pragma once

#include "../support/tile.h"

namespace a2s {

constexpr int kCopyThreads = 128;  // at least

// Of maps without gaps within an image, whose images start at multiples of 16 bytes; others leave `bytes` 0.
template <class T>
struct ImageCopy {
  const T* from = nullptr;
  T* to = nullptr;
  int64_t from_next = 0, to_next = 0;  // values between images
  int64_t bytes = 0;                   // of an image
  Divisor chunks;                      // of an image, one for each block
  static constexpr int kChunk = 16 * 1024;

  ImageCopy() = default;
  ImageCopy(const Map<const T>& source, const Map<T>& out)
      : from(source.data), to(out.data), from_next(source.stride_n), to_next(out.stride_n) {
    const int64_t row = out.w * out.c;
    const bool planar = is_dense(source, 1, out.w, out.h * out.w) && is_dense(out, 1, out.w, out.h * out.w);
    const bool interleaved = is_dense(source, out.c, row, 1) && is_dense(out, out.c, row, 1);
    if ((planar || interleaved) && starts_packs(source) && starts_packs(out)) bytes = out.c * out.h * out.w * sizeof(T);
    chunks = Divisor(std::max<int64_t>(1, ceil_div(bytes, kChunk)));
  }
  int64_t blocks(int64_t images) const { return images * chunks.divisor; }

#if defined(__CUDACC__)
  __device__ void run(int block) const {
    const int image = chunks.split(block);
    const auto first = static_cast<int64_t>(block) * kChunk;
    const int length = static_cast<int>(min(static_cast<int64_t>(kChunk), bytes - first));
    const T* const source = moved(from + image * from_next, first);
    T* const out = moved(to + image * to_next, first);
#pragma unroll 4
    for (int i = threadIdx.x; i < length / kPackBytes; i += blockDim.x) {
      reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(source)[i];
    }
    constexpr int kValues = kPackBytes / sizeof(T);
    const int rest = length / kPackBytes * kValues + threadIdx.x;
    if (threadIdx.x < kValues && rest * sizeof(T) < length) out[rest] = source[rest];
  }
#endif

 private:
  template <class U>
  static bool is_dense(const Map<U>& map, int64_t stride_w, int64_t stride_h, int64_t stride_c) {
    return map.stride_w == stride_w && map.stride_h == stride_h && map.stride_c == stride_c;
  }
  template <class U>
  static bool starts_packs(const Map<U>& map) {
    return reinterpret_cast<uintptr_t>(map.data) % kPackBytes == 0 && map.stride_n * sizeof(T) % kPackBytes == 0;
  }
};

}  // namespace a2s
