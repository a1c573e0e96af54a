// V adjacent values, loaded and stored at once.
#pragma once

#include "tensor.h"

namespace a2s {

constexpr int kPackBytes = 16;

// Values of a pack; double, which serves tests of gradients, has none.
template <class T>
constexpr int kPack = sizeof(T) == 8 ? 1 : kPackBytes / sizeof(T);

template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

// Whether every pixel's channels are whole, aligned groups of V.
template <int V, class T>
bool packs(const Map<T>& map) {
  return map.stride_c == 1 && map.c % V == 0 && map.stride_n % V == 0 && map.stride_h % V == 0 &&
         map.stride_w % V == 0 && reinterpret_cast<uintptr_t>(map.data) % (V * sizeof(T)) == 0 && map.channels_last;
}

template <class T, int V>
__device__ void load_values(const T* from, acc_t<T> (&v)[V]) {
  using Values = Pack<std::remove_const_t<T>, V>;
  const Values values = *reinterpret_cast<const Values*>(from);
#pragma unroll
  for (int k = 0; k < V; ++k) v[k] = static_cast<acc_t<T>>(values.v[k]);
}

template <class T, int V>
__device__ void store_values(T* to, const acc_t<T> (&v)[V]) {
  if constexpr (V == 1) {
    *to = static_cast<T>(v[0]);
  } else {
    Pack<T, V> values;
#pragma unroll
    for (int k = 0; k < V; ++k) values.v[k] = static_cast<T>(v[k]);
    // A plain assignment is sometimes compiled to stores of a part each.
    if constexpr (sizeof(values) == sizeof(uint4)) {
      __stcg(reinterpret_cast<uint4*>(to), __builtin_bit_cast(uint4, values));
    } else {
      static_assert(sizeof(values) == sizeof(uint32_t));
      *reinterpret_cast<uint32_t*>(to) = __builtin_bit_cast(uint32_t, values);
    }
  }
}

}  // namespace a2s
