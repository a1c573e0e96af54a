// The exponential function of numbers x <= 0.
#pragma once

#include <cstring>

#include "host_device.h"

namespace a2s {

// On the host a polynomial on [-ln 2 / 2, ln 2 / 2], which compilers vectorise. Relative error 1.2e-7; 0 below -87.
A2S_HD float exp_of(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  constexpr float smallest = -87.f, log2_e = 1.44269504f, to_integer = 12582912.f;  // 1.5 * 2^23
  constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  const float a = x > smallest ? x : smallest;
  const float n = (a * log2_e + to_integer) - to_integer;
  const float r = (a - n * ln2_high) - n * ln2_low;
  const float tail =
      ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
       1.6666665459e-1f) * r + 5.0000001201e-1f;
  const int32_t power_of_two = (static_cast<int32_t>(n) + 127) * (1 << 23);
  float scale;
  std::memcpy(&scale, &power_of_two, sizeof(scale));
  const float result = (tail * r * r + r + 1.f) * scale;
  return x > smallest ? result : x <= smallest ? 0.f : x;  // x itself if it is not a number
#endif
}
A2S_HD double exp_of(double x) { return exp(x); }

}  // namespace a2s
