// Tiles of maps, each made by one block of a CUDA kernel.
//
// A tile is `rows` rows of `outer` x `inner` columns. Inner columns are adjacent in memory: pixels in planar maps, where
// the outer index is the channel; channels in channels_last ones, where the outer index is the pixel.
#pragma once

#include <algorithm>

#include "pack.h"

namespace a2s {

constexpr int kBlockThreads = 256;  // at most
constexpr int kMaxSharedBytes = 44 * 1024;  // a block has 48 KiB unless it requests more
constexpr int64_t kBlocksWanted = 4 * 132;

// Division of numbers below 2^31 by a divisor that is known at launch: a multiplication and a shift.
struct Divisor {
  uint32_t divisor, multiplier, shift;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while (shift < 31 && (uint32_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
#if defined(__CUDACC__)
  __device__ int quotient(int n) const { return static_cast<int>((__umulhi(n, multiplier) + n) >> shift); }
  // n / divisor, leaving the remainder in n.
  __device__ int split(int& n) const {
    const int q = quotient(n);
    n -= q * static_cast<int>(divisor);
    return q;
  }
#endif
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `extent` cut into parts of at most `most`, as equal as can be.
inline int balanced(int64_t extent, int64_t most) {
  most = std::clamp<int64_t>(most, 1, extent);
  return static_cast<int>(ceil_div(extent, ceil_div(extent, most)));
}

// Offsets within a row of a tile are 32-bit, in bytes. Maps with longer rows are made contiguous first; of maps with
// distant channels a tile takes fewer.
constexpr int64_t kMaxOffset = int64_t{1} << 28;  // values

#if defined(__CUDACC__)
template <class T>
__device__ const T* advanced(const T* row, uint32_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(row) + bytes);
}

// Channel c of column x in row y of image n.
template <class T>
__device__ const T* row_of(const Map<const T>& map, int n, int c, int x, int y) {
  return map.data + n * map.stride_n + c * map.stride_c + x * map.stride_w + y * map.stride_h;
}

template <class T>
__device__ T* place_in(const Map<T>& map, int n, int c, int x, int y) {
  return map.data + n * map.stride_n + c * map.stride_c + x * map.stride_w + y * map.stride_h;
}

// Distance in bytes of channel c and column x from the first ones in a row.
template <class T>
__device__ uint32_t offset_in(const Map<const T>& map, int c, int x) {
  return (c * static_cast<uint32_t>(map.stride_c) + x * static_cast<uint32_t>(map.stride_w)) * sizeof(T);
}
#endif

// How many outer columns keep the offsets into `map` within 32 bits, if each takes `step` of its columns.
template <class T>
int64_t outer_limit(const Map<T>& map, bool interleaved, double step) {
  const double distance = interleaved ? step * map.stride_w : map.stride_c;
  return distance > 0 ? std::max<int64_t>(1, static_cast<int64_t>(kMaxOffset / distance)) : kMaxOffset;
}

// `map`, or a copy of it whose rows are shorter.
inline Tensor addressable(const Tensor& map, bool interleaved) {
  const int64_t row = (map.size(3) - 1) * map.stride(3) + (interleaved ? (map.size(1) - 1) * map.stride(1) : 0);
  if (row < kMaxOffset || map.numel() == 0) return map;
  return torch::stable::contiguous(map, interleaved ? torch::headeronly::MemoryFormat::ChannelsLast
                                                    : torch::headeronly::MemoryFormat::Contiguous);
}

// Whether the channels of a fresh result are its inner columns.
template <class T>
bool is_interleaved(const Map<T>& out) {
  return out.stride_w != 1;
}

// Calls body(std::bool_constant<is_interleaved(out)>{}).
template <class T, class Body>
void dispatch_layout(const Map<T>& out, const Body& body) {
  is_interleaved(out) ? body(std::true_type{}) : body(std::false_type{});
}

struct Tile {
  int n, y, rows, o, outer, i, inner;  // first row and columns, and how many of them
};

// How (n, rows, outer, inner) is cut into tiles.
struct Tiling {
  int64_t n;
  int all_rows, all_outer, all_inner;
  int rows, outer, inner;  // of a whole tile
  Divisor strips, outer_tiles, inner_tiles, columns_inner;

  Tiling() = default;
  Tiling(int64_t n, int64_t all_rows, int64_t all_outer, int64_t all_inner, int64_t rows, int64_t outer, int64_t inner)
      : n(n), all_rows(static_cast<int>(all_rows)), all_outer(static_cast<int>(all_outer)),
        all_inner(static_cast<int>(all_inner)), rows(balanced(all_rows, rows)), outer(balanced(all_outer, outer)),
        inner(balanced(all_inner, inner)), strips(ceil_div(all_rows, this->rows)),
        outer_tiles(ceil_div(all_outer, this->outer)), inner_tiles(ceil_div(all_inner, this->inner)),
        columns_inner(this->inner) {}

  int64_t blocks() const {
    return n * strips.divisor * int64_t{outer_tiles.divisor} * inner_tiles.divisor;
  }

#if defined(__CUDACC__)
  __device__ Tile tile(int block) const {
    Tile tile;
    int rest = block;
    int next = inner_tiles.split(rest);
    tile.i = rest * inner;
    rest = next;
    next = outer_tiles.split(rest);
    tile.o = rest * outer;
    rest = next;
    tile.n = strips.split(rest);
    tile.y = rest * rows;
    tile.rows = min(rows, all_rows - tile.y);
    tile.outer = min(outer, all_outer - tile.o);
    tile.inner = min(inner, all_inner - tile.i);
    return tile;
  }
#endif
};

// Where the tiles of a result lie in shared memory before they are stored. Distances there are congruent to those in
// the result modulo kPackBytes, so that what is aligned here is aligned there, and whole packs are stored at once.
// Segments are the stretches of a tile that are contiguous in the result.
struct Staging {
  int row_pitch, outer_pitch, values;  // of a whole tile
  int64_t row_stride, outer_stride;
  bool rows_outside;  // rows are further apart than outer columns
  int merged;         // how many of the two outer dimensions a segment takes in
  bool together;      // all threads store a segment, rather than a warp

  Staging() = default;
  // Of tiles of `out`, whose inner columns are adjacent.
  template <class T>
  Staging(const Map<T>& out, int rows, int outer, int inner, bool interleaved)
      : row_stride(out.stride_h), outer_stride(interleaved ? out.stride_w : out.stride_c), rows_outside(interleaved) {
    constexpr int pack = kPackBytes / sizeof(T);
    const int64_t minor_stride = interleaved ? outer_stride : row_stride;
    const int64_t major_stride = interleaved ? row_stride : outer_stride;
    const int minor = interleaved ? outer : rows, major = interleaved ? rows : outer;
    const auto pitch = [](int64_t least, int64_t stride) {
      return static_cast<int>(least + ((stride - least) % pack + pack) % pack);
    };
    const int minor_pitch = pitch(inner, minor_stride);
    const int major_pitch = pitch(int64_t{minor} * minor_pitch, major_stride);
    merged = inner != minor_stride ? 0 : int64_t{minor} * minor_pitch != major_stride ? 1 : 2;
    row_pitch = interleaved ? major_pitch : minor_pitch;
    outer_pitch = interleaved ? minor_pitch : major_pitch;
    values = major * major_pitch + pack;
    const int segments = (merged > 0 ? 1 : minor) * (merged > 1 ? 1 : major);
    together = segments == 1;
  }

  template <class T>
  int bytes() const {
    return (values * static_cast<int>(sizeof(T)) + kPackBytes - 1) / kPackBytes * kPackBytes;
  }

#if defined(__CUDACC__)
  // The place in shared memory of the first value of the tile that goes to `to`.
  template <class T>
  __device__ static int start(const T* to) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(to) % kPackBytes / sizeof(T));
  }

  // Stores a staged tile, or its first rows or columns; the first value goes to `to`. Called by all threads of the block,
  // after a barrier.
  template <class T>
  __device__ void store(const T* staged, T* to, int rows, int outer, int inner) const {
    constexpr unsigned pack = kPackBytes / sizeof(T);
    const int minor = rows_outside ? outer : rows, major = rows_outside ? rows : outer;
    const int64_t minor_stride = rows_outside ? outer_stride : row_stride;
    const int64_t major_stride = rows_outside ? row_stride : outer_stride;
    const int minor_pitch = rows_outside ? outer_pitch : row_pitch, major_pitch = rows_outside ? row_pitch : outer_pitch;
    const int length = inner * (merged > 0 ? minor : 1) * (merged > 1 ? major : 1);
    const int inside = merged > 0 ? 1 : minor, outside = merged > 1 ? 1 : major;
    const int first = start(to);
    const unsigned group = together ? blockDim.x : 32, lane = together ? threadIdx.x : threadIdx.x % 32;
    // Segment (a, b) of outside x inside.
    for (int a = 0, b = together ? 0 : threadIdx.x / 32;; b += together ? 1 : blockDim.x / 32) {
      for (; b >= inside && a < outside; ++a) b -= inside;
      if (a >= outside) break;
      const unsigned at = first + a * major_pitch + b * minor_pitch;
      const T* from = staged + at;
      T* const segment_to = to + (a * major_stride + b * minor_stride);
      // Values before the first whole pack, whole packs, and values after the last.
      const unsigned head = min(-at % pack, static_cast<unsigned>(length)), whole = (length - head) / pack;
      auto* const packs_to = reinterpret_cast<unsigned char*>(segment_to + head);
      const auto* const packs_from = reinterpret_cast<const unsigned char*>(from + head);
      const unsigned step = group * kPackBytes, end = whole * kPackBytes;
#pragma unroll 1
      for (unsigned i = lane * kPackBytes; i < end; i += step) {
        *reinterpret_cast<uint4*>(packs_to + i) = *reinterpret_cast<const uint4*>(packs_from + i);
      }
      const unsigned tail = head + whole * pack;
      if (lane < head) segment_to[lane] = from[lane];
      if (tail + lane < length) segment_to[tail + lane] = from[tail + lane];
    }
  }
#endif
};

}  // namespace a2s
