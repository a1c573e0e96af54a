// Launching CUDA kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace a2s {

inline void check_blocks(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::runtime_error("a2s: the maps are too large for one CUDA launch; split the batch.");
}

// The blocks of a launch that makes up to kMaxScales parts, one after another.
struct Parts {
  int64_t blocks = 0;
  int count = 0, first[kMaxScales];

  Parts() { std::fill_n(first, kMaxScales, INT32_MAX); }
  // Appends a part.
  void add(int64_t part_blocks) {
    first[count++] = static_cast<int>(blocks);
    blocks += part_blocks;
    check_blocks(blocks);
  }
#if defined(__CUDACC__)
  // The part that `block` belongs to. Leaves its number among the blocks of that part.
  __device__ int part_of(int& block) const {
    int part = 0;
#pragma unroll
    for (int i = 1; i < kMaxScales; ++i) part += block >= first[i];
    block -= first[part];
    return part;
  }
#endif
};

constexpr int kUnrequestedSharedBytes = 48 * 1024;  // that a block can have without a request

inline void check_launch(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("a2s: CUDA launch: ") + cudaGetErrorString(status));
}

// Shared memory that a block may request if a multiprocessor of the device of `on` is to hold `blocks` of them.
inline int shared_bytes_of(const Tensor& on, int blocks) {
  constexpr int kReserved = 1024;  // of each block
  const auto attribute = [&](cudaDeviceAttr name) {
    int bytes = 0;
    check_launch(cudaDeviceGetAttribute(&bytes, name, on.get_device_index()));
    return bytes;
  };
  return std::min(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / blocks - kReserved,
                  attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// Runs `kernel` on the current stream of the device of `on`.
template <class... Parameters, class... Arguments>
void launch(const Tensor& on, int64_t blocks, int threads, int shared_bytes, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  if (blocks == 0) return;
  check_blocks(blocks);
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  if (shared_bytes > kUnrequestedSharedBytes) {
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_launch(cudaGetLastError());
}

}  // namespace a2s
