// Kernels for tests of the interpreter itself: what it computes, and faults that it must find.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr unsigned kAll = 0xffffffff;

// ---- what it computes

__global__ void double_exp(const double* x, double* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = exp(x[i]);
}

__global__ void float_exp(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = expf(x[i]);
}

__global__ void float_fma(const float* a, const float* b, const float* c, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __fmaf_rn(a[i], b[i], c[i]);
}

__global__ void double_fma(const double* a, const double* b, const double* c, double* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __fma_rn(a[i], b[i], c[i]);
}

__global__ void half_pairs(const __half2* a, const __half2* b, const __half2* c, __half2* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[3 * i] = __hfma2(a[i], b[i], c[i]);
  y[3 * i + 1] = __hadd2(a[i], b[i]);
  y[3 * i + 2] = __hmul2(a[i], b[i]);
}

__global__ void bfloat_pairs(const __nv_bfloat162* a, const __nv_bfloat162* b, const __nv_bfloat162* c,
                             __nv_bfloat162* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __hfma2(a[i], b[i], c[i]);
}

__global__ void conversions(const float* x, __half* h, __nv_bfloat16* b, int* i32, int64_t* i64, uint8_t* u8, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  h[i] = __float2half_rn(x[i]);
  b[i] = __float2bfloat16_rn(x[i]);
  i32[i] = static_cast<int>(x[i]);
  i64[i] = static_cast<int64_t>(floorf(x[i]));
  u8[i] = static_cast<uint8_t>(static_cast<int>(x[i]) & 255);
}

__global__ void integers(const int64_t* a, const int64_t* b, int64_t* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t* row = y + 8 * i;
  row[0] = a[i] / b[i];
  row[1] = a[i] % b[i];
  row[2] = static_cast<uint32_t>(a[i]) / static_cast<uint32_t>(b[i] | 1);
  row[3] = __mul64hi(a[i], b[i]);
  row[4] = __popcll(a[i]);
  row[5] = __clzll(a[i]);
  row[6] = static_cast<int>(a[i]) >> (b[i] & 31);
  row[7] = __funnelshift_l(static_cast<uint32_t>(a[i]), static_cast<uint32_t>(b[i]), 7);
}

// Sum of a block's values, by shuffles in each warp, then through shared memory.
__global__ void block_sum(const float* x, float* y, int n) {
  __shared__ float of_warp[32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = i < n ? x[i] : 0;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  sum = lane < blockDim.x / 32 ? of_warp[lane] : 0;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kAll, sum, step);
  if (lane == 0) y[blockIdx.x] = sum;
}

__global__ void votes(const int* x, unsigned* y) {
  const int value = x[threadIdx.x];
  unsigned* row = y + 5 * threadIdx.x;
  row[0] = __ballot_sync(kAll, value > 0);
  row[1] = __any_sync(kAll, value > 30);
  row[2] = __all_sync(kAll, value > -100);
  row[3] = __reduce_add_sync(kAll, value);
  row[4] = __shfl_up_sync(kAll, value, 1, 8);
}

// Loops of different lengths, nested, with a divergent branch inside.
__global__ void divergence(const int* x, int* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int sum = 0;
  for (int k = 0; k < x[i]; ++k) {
    if ((k + i) % 3 == 0) {
      for (int m = k; m > 0; m /= 2) sum += m;
    } else if (k % 2) {
      sum -= k;
    }
  }
  y[i] = sum;
}

// Warps exchange values through shared memory without a barrier of the block.
__global__ void warp_exchange(const int* x, int* y) {
  __shared__ int values[64];
  for (int round = 0; round < 3; ++round) {
    values[threadIdx.x] = x[threadIdx.x] + round;
    __syncwarp();
    y[round * 64 + threadIdx.x] = values[threadIdx.x ^ 5];
    __syncwarp();
  }
}

__global__ void dynamic_transpose(const float* x, float* y) {
  extern __shared__ float tile[];
  const int row = threadIdx.y, column = threadIdx.x, side = blockDim.x;
  const size_t first = size_t(blockIdx.z * gridDim.y + blockIdx.y) * side * side;
  tile[row * side + column] = x[first + row * side + column];
  __syncthreads();
  y[first + row * side + column] = tile[column * side + row];
}

// Needs `bytes` of shared memory, of which it uses the last.
__global__ void much_shared(float* y, int bytes) {
  extern __shared__ float memory[];
  const int at = bytes / 4 - 1 - threadIdx.x;
  memory[at] = threadIdx.x;
  y[threadIdx.x] = memory[at];
}

// Each of a warp's lanes writes and reads a word `stride` words from its neighbour's.
__global__ void strided_shared(float* y, int stride) {
  __shared__ float values[32 * 33];
  values[threadIdx.x * stride] = threadIdx.x;
  __syncwarp();
  y[threadIdx.x] = values[(threadIdx.x ^ 1) * stride];
}

// The same of 16 bytes.
__global__ void strided_packs(float4* y, int stride) {
  __shared__ float4 values[32 * 3];
  const float v = threadIdx.x;
  values[threadIdx.x * stride] = make_float4(v, v, v, v);
  __syncwarp();
  y[threadIdx.x] = values[(threadIdx.x ^ 1) * stride];
}

// ---- faults

__global__ void misaligned(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 1);
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

__global__ void copy(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

__global__ void misaligned_shared(float* y) {
  __shared__ float values[64];
  values[threadIdx.x] = 1;
  values[threadIdx.x + 32] = 1;
  __syncthreads();
  y[threadIdx.x] = reinterpret_cast<const volatile double*>(values + 1)[threadIdx.x % 8];
}

__global__ void beyond_shared(float* y, int at) {
  __shared__ float values[32];
  values[threadIdx.x + at] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

__global__ void unwritten_shared(float* y, int n) {
  __shared__ float values[32];
  if (threadIdx.x < n) values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

__global__ void race_in_phase(float* y) {
  __shared__ float values[64];
  values[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = values[threadIdx.x ^ 32];
}

// The barrier at the end of the loop is missing: a fast warp writes what a slow one still reads.
__global__ void race_across_barriers(const float* x, float* y, int rounds) {
  __shared__ float values[64];
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    values[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += values[threadIdx.x ^ 32];
  }
  y[threadIdx.x] = sum;
}

__global__ void two_writers_shared(float* y) {
  __shared__ float value;
  value = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = value;
}

__global__ void two_writers(float* y) { y[threadIdx.x / 2] = 1; }

__global__ void reads_anothers_result(float* y) {
  y[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x + 64] = y[threadIdx.x ^ 1];
}

__global__ void reads_unwritten_result(float* y) { y[threadIdx.x] += 1; }

__global__ void divergent_barrier(float* y) {
  __shared__ float values[64];
  if (threadIdx.x < 32) {
    values[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x ^ 1];
  } else {
    y[threadIdx.x] = 2;
  }
}

__global__ void two_barriers(float* y) {
  __shared__ float values[64];
  if (threadIdx.x < 32) {
    values[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x ^ 1];
  } else {
    values[threadIdx.x] = 3;
    __syncthreads();
    y[threadIdx.x] = 2 + values[threadIdx.x - 32];
  }
}

__global__ void incomplete_shuffle(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(kAll, value, 1);
  y[threadIdx.x] = value;
}

__global__ void shuffle_from_nobody(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_sync(0xffff, value, 20);
  y[threadIdx.x] = value;
}

}  // namespace

#define HOST extern "C" __attribute__((visibility("default"))) void

HOST run_double_exp(const double* x, double* y, int n) { double_exp<<<(n + 127) / 128, 128>>>(x, y, n); }
HOST run_float_exp(const float* x, float* y, int n) { float_exp<<<(n + 127) / 128, 128>>>(x, y, n); }
HOST run_float_fma(const float* a, const float* b, const float* c, float* y, int n) {
  float_fma<<<(n + 127) / 128, 128>>>(a, b, c, y, n);
}
HOST run_double_fma(const double* a, const double* b, const double* c, double* y, int n) {
  double_fma<<<(n + 127) / 128, 128>>>(a, b, c, y, n);
}
HOST run_half_pairs(const __half2* a, const __half2* b, const __half2* c, __half2* y, int n) {
  half_pairs<<<(n + 127) / 128, 128>>>(a, b, c, y, n);
}
HOST run_bfloat_pairs(const __nv_bfloat162* a, const __nv_bfloat162* b, const __nv_bfloat162* c, __nv_bfloat162* y,
                      int n) {
  bfloat_pairs<<<(n + 127) / 128, 128>>>(a, b, c, y, n);
}
HOST run_conversions(const float* x, __half* h, __nv_bfloat16* b, int* i32, int64_t* i64, uint8_t* u8, int n) {
  conversions<<<(n + 127) / 128, 128>>>(x, h, b, i32, i64, u8, n);
}
HOST run_integers(const int64_t* a, const int64_t* b, int64_t* y, int n) {
  integers<<<(n + 127) / 128, 128>>>(a, b, y, n);
}
HOST run_block_sum(const float* x, float* y, int n) { block_sum<<<(n + 255) / 256, 256>>>(x, y, n); }
HOST run_votes(const int* x, unsigned* y) { votes<<<1, 64>>>(x, y); }
HOST run_divergence(const int* x, int* y, int n) { divergence<<<(n + 95) / 96, 96>>>(x, y, n); }
HOST run_warp_exchange(const int* x, int* y) { warp_exchange<<<1, 64>>>(x, y); }
HOST run_dynamic_transpose(const float* x, float* y) {
  dynamic_transpose<<<dim3(1, 2, 3), dim3(12, 12), 12 * 12 * sizeof(float)>>>(x, y);
}

HOST run_much_shared(float* y, int bytes, int requested) {
  cudaFuncSetAttribute(much_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, requested);
  much_shared<<<1, 32, bytes>>>(y, bytes);
}

HOST run_strided_shared(float* y, int stride) { strided_shared<<<1, 32>>>(y, stride); }

HOST run_strided_packs(float4* y, int stride) { strided_packs<<<1, 32>>>(y, stride); }

HOST run_misaligned(const float* x, float* y) { misaligned<<<1, 32>>>(x, y); }
HOST run_copy(const float* x, float* y, int n) { copy<<<(n + 31) / 32, 32>>>(x, y, n); }
HOST run_misaligned_shared(float* y) { misaligned_shared<<<1, 32>>>(y); }
HOST run_beyond_shared(float* y, int at) { beyond_shared<<<2, 32>>>(y, at); }
HOST run_unwritten_shared(float* y, int n) { unwritten_shared<<<1, 32>>>(y, n); }
HOST run_race_in_phase(float* y) { race_in_phase<<<1, 64>>>(y); }
HOST run_race_across_barriers(const float* x, float* y, int rounds) { race_across_barriers<<<1, 64>>>(x, y, rounds); }
HOST run_two_writers_shared(float* y) { two_writers_shared<<<1, 64>>>(y); }
HOST run_two_writers(float* y) { two_writers<<<1, 64>>>(y); }
HOST run_reads_anothers_result(float* y) { reads_anothers_result<<<1, 64>>>(y); }
HOST run_reads_unwritten_result(float* y) { reads_unwritten_result<<<1, 64>>>(y); }
HOST run_divergent_barrier(float* y) { divergent_barrier<<<1, 64>>>(y); }
HOST run_two_barriers(float* y) { two_barriers<<<1, 64>>>(y); }
HOST run_incomplete_shuffle(const float* x, float* y) { incomplete_shuffle<<<1, 64>>>(x, y); }
HOST run_shuffle_from_nobody(const float* x, float* y) { shuffle_from_nobody<<<1, 64>>>(x, y); }
