// Launching CUDA kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "tensor.h"

namespace a2s {

inline void check_blocks(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::runtime_error("a2s: the maps are too large for one CUDA launch; split the batch.");
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
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) throw std::runtime_error(std::string("a2s: CUDA launch: ") + cudaGetErrorString(status));
}

}  // namespace a2s
