// Marks for code that runs on the host and on the GPU alike, and float32 arithmetic that is never contracted.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define A2S_HD __host__ __device__ inline
#else
#define A2S_HD inline
#endif

namespace a2s {

// Sampling coordinates must not be fused into multiply-adds: 321 -> 241 would move by 3e-5. The host is compiled with
// -ffp-contract=off for the same reason.
A2S_HD float exact_mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

A2S_HD float exact_sub(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}

}  // namespace a2s
