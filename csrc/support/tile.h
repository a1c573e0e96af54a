// Tiles of maps, each made by one block of a CUDA kernel: rows of adjacent pixels, and some of their channels.
//
// In the result, inner columns are adjacent in memory: pixels in planar maps, where the outer columns are channels;
// channels in channels_last ones ("interleaved"), where the outer columns are pixels.
#pragma once

#include <algorithm>

#include "pack.h"

namespace a2s {

constexpr int kBlockThreads = 256;  // at most
constexpr int kMaxSharedBytes = 42 * 1024;  // beside small tables: a block has 48 KiB unless it requests more
constexpr int64_t kMultiprocessors = 132;   // of an H100 or H200
constexpr int64_t kBlocksWanted = 480;      // nearly four for each of them

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
// distant channels a tile takes fewer at once.
constexpr int64_t kMaxOffset = int64_t{1} << 28;  // values

#if defined(__CUDACC__)
template <class T>
__device__ const T* advanced(const T* row, uint32_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(row) + bytes);
}

template <class T>
__device__ T* moved(T* row, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(row) + bytes);
}

// Keeps a value in a register. The compiler would compute it again where it is used.
__device__ inline void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
__device__ inline void keep(float& v) { asm volatile("" : "+f"(v)); }
__device__ inline void keep(double& v) { asm volatile("" : "+d"(v)); }
// A pointer to global memory, which the compiler would no longer know it to be.
template <class T>
__device__ void keep(T*& v) {
  size_t address = __cvta_generic_to_global(v);
  asm volatile("" : "+l"(address));
  v = static_cast<T*>(__cvta_global_to_generic(address));
}

// What lies at an address in shared memory.
template <class T>
__device__ const T* in_shared(uint32_t address) {
  return static_cast<const T*>(__cvta_shared_to_generic(address));
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

template <class T>
int64_t bytes_between_rows(const Map<T>& map) {
  return map.stride_h * static_cast<int64_t>(sizeof(T));
}

// Distance in bytes of channels that are `count` apart.
template <class T>
uint32_t bytes_apart(const Map<T>& map, int64_t count) {
  return static_cast<uint32_t>(count * map.stride_c * static_cast<int64_t>(sizeof(T)));
}

// How many channels keep the offsets into `map` within 32 bits.
template <class T>
int64_t channel_limit(const Map<T>& map) {
  return map.stride_c > 0 ? std::max<int64_t>(1, kMaxOffset / map.stride_c) : kMaxOffset;
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
  int n, y, rows, x, width, c, channels;  // first row, column and channel, and how many of them
};

// How (n, rows, width, channels) is cut into tiles.
struct Tiling {
  int64_t n;
  int all_rows, all_width, all_channels;
  int rows, width, channels;  // of a whole tile
  Divisor strips, x_tiles, c_tiles;

  Tiling() = default;
  Tiling(int64_t n, int64_t all_rows, int64_t all_width, int64_t all_channels, int64_t rows, int64_t width,
         int64_t channels)
      : n(n), all_rows(static_cast<int>(all_rows)), all_width(static_cast<int>(all_width)),
        all_channels(static_cast<int>(all_channels)), rows(balanced(all_rows, rows)), width(balanced(all_width, width)),
        channels(static_cast<int>(channels)), strips(ceil_div(all_rows, this->rows)),
        x_tiles(ceil_div(all_width, this->width)), c_tiles(ceil_div(all_channels, this->channels)) {}

  int64_t blocks() const { return n * strips.divisor * int64_t{x_tiles.divisor} * c_tiles.divisor; }

#if defined(__CUDACC__)
  __device__ Tile tile(int block) const {
    Tile tile;
    int rest = block;
    int next = x_tiles.split(rest);
    tile.x = rest * width;
    rest = next;
    next = c_tiles.split(rest);
    tile.c = rest * channels;
    rest = next;
    tile.n = strips.split(rest);
    tile.y = rest * rows;
    tile.rows = min(rows, all_rows - tile.y);
    tile.width = min(width, all_width - tile.x);
    tile.channels = min(channels, all_channels - tile.c);
    return tile;
  }
#endif
};

// How the threads of a block share a group of channels of a tile. A place is a column of pixels and K channels of the
// group, `slots` apart; adjacent threads take adjacent inner columns, and all threads take as many places.
struct Places {
  int width, slots;
  int most_threads;
  Divisor by_inner;

  Places() = default;
  Places(int64_t width, int64_t slots, bool interleaved, int most_threads = kBlockThreads)
      : width(static_cast<int>(width)), slots(static_cast<int>(slots)), most_threads(most_threads),
        by_inner(interleaved ? slots : width) {}

  // In tiles of `width` columns of planar maps: the slots, up to `most`, that leave the fewest threads idle.
  static Places planar(int64_t width, int64_t most) {
    Places best(width, 1, false);
    for (int64_t slots = 2; slots <= std::min<int64_t>(most, 2 * kBlockThreads / width); ++slots) {
      const Places other(width, slots, false);
      if (other.busy() > best.busy() * 1.03) best = other;
    }
    return best;
  }

  A2S_HD int count() const { return width * slots; }
  int threads() const {
    const int64_t rounds = ceil_div(count(), most_threads);
    return static_cast<int>(ceil_div(count(), 32 * rounds) * 32);
  }
  double busy() const { return count() / static_cast<double>(ceil_div(count(), threads()) * threads()); }

#if defined(__CUDACC__)
  // The column and the first channel of place i.
  template <bool kInterleaved>
  __device__ void split(int i, int& x, int& slot) const {
    const int outer = by_inner.split(i);
    x = kInterleaved ? outer : i;
    slot = kInterleaved ? i : outer;
  }
#endif
};

// Where the tiles of a result lie in shared memory before they are stored. Distances there are congruent to those in
// the result modulo kPackBytes, so that what is aligned here is aligned there, and whole packs are stored at once.
// Segments are the stretches of a tile that are contiguous in the result.
struct Staging {
  int row_pitch, outer_pitch, values;  // of a whole tile
  // Of the two outer dimensions, rows and outer columns, the one that is nearer in memory and the other.
  int near_pitch, far_pitch, near_stride;
  int64_t far_stride;
  bool rows_near;
  int merged;       // how many of the two a segment takes in
  int lane_bits;    // of the number of lanes that store a segment
  Divisor by_near;  // segments of a whole tile along the nearer one

  Staging() = default;
  // Of tiles of `out`, whose inner columns are adjacent.
  template <class T>
  Staging(const Map<T>& out, int rows, int outer, int inner, bool interleaved) : rows_near(!interleaved) {
    constexpr int pack = kPackBytes / sizeof(T);
    const int64_t outer_stride = interleaved ? out.stride_w : out.stride_c;
    near_stride = static_cast<int>(rows_near ? out.stride_h : outer_stride);
    far_stride = rows_near ? outer_stride : out.stride_h;
    const int near = rows_near ? rows : outer, far = rows_near ? outer : rows;
    const auto pitch = [](int64_t least, int64_t stride) {
      return static_cast<int>(least + ((stride - least) % pack + pack) % pack);
    };
    near_pitch = pitch(inner, near_stride);
    far_pitch = pitch(int64_t{near} * near_pitch, far_stride);
    merged = inner != near_stride ? 0 : int64_t{near} * near_pitch != far_stride ? 1 : 2;
    row_pitch = rows_near ? near_pitch : far_pitch;
    outer_pitch = rows_near ? far_pitch : near_pitch;
    values = far * far_pitch + pack;
    by_near = Divisor(merged > 0 ? 1 : near);
    // No fewer than values outside of whole packs, and those that take the fewest instructions: about 60 to start a
    // segment and 16 a pack.
    const int64_t segments = int64_t{by_near.divisor} * (merged > 1 ? 1 : far);
    const int64_t packs = ceil_div(inner * int64_t{merged > 0 ? near : 1}, pack);
    int64_t least = INT64_MAX;
    for (int bits = 5; 1 << bits >= 2 * (pack - 1); --bits) {
      const int64_t rounds = ceil_div(segments, kBlockThreads >> bits);
      const int64_t cost = rounds * (60 + 16 * ceil_div(packs, 1 << bits));
      if (cost < least) {
        least = cost;
        lane_bits = bits;
      }
    }
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

  // Stores a staged tile, or its first rows or columns; the first value goes to `to`. Called by all threads of the
  // block, after a barrier. A group of lanes stores a segment, or all threads the only one.
  template <class T>
  __device__ void store(const T* staged, T* to, int rows, int outer, int inner) const {
    const int near = rows_near ? rows : outer, far = rows_near ? outer : rows;
    const int segments = by_near.divisor * (merged > 1 ? 1 : far);
    const bool together = segments == 1;
    const uint32_t lanes = together ? blockDim.x : 1u << lane_bits;
    const uint32_t lane = together ? threadIdx.x : threadIdx.x & (lanes - 1);
    // From here on addresses in shared memory, and lengths in bytes.
    const uint32_t length = inner * (merged > 0 ? near : 1) * (merged > 1 ? far : 1) * sizeof(T);
    uint32_t first = static_cast<uint32_t>(__cvta_generic_to_shared(staged + start(to)));
    uint32_t step = lanes * kPackBytes;
    keep(first);
    keep(step);
#pragma unroll 1
    for (int segment = together ? 0 : threadIdx.x >> lane_bits; segment < segments;
         segment += together ? 1 : blockDim.x >> lane_bits) {
      int b = segment;
      const int a = by_near.split(b);
      if (merged == 0 && b >= near) continue;
      const uint32_t from = first + (a * far_pitch + b * near_pitch) * sizeof(T);
      auto* place = reinterpret_cast<unsigned char*>(to + a * far_stride) + unsigned(b * near_stride * sizeof(T));
      keep(place);
      // Values before the first whole pack, and in whole packs. Fewer are left than a group has lanes.
      const uint32_t head = min(-from % kPackBytes, length), packed = (length - head) / kPackBytes * kPackBytes;
      uint32_t rest = lane * sizeof(T);
      if (rest >= head) rest += packed;
      if (rest < length) *reinterpret_cast<T*>(place + rest) = *in_shared<T>(from + rest);
      uint32_t end = from + head + packed;
      keep(end);
      place += head + lane * kPackBytes;
#pragma unroll 1
      for (uint32_t at = from + head + lane * kPackBytes; at < end; at += step, place += step) {
        *reinterpret_cast<uint4*>(place) = *in_shared<uint4>(at);
      }
    }
  }
#endif
};

}  // namespace a2s
