// Running a kernel: a host+device function object of a flat thread index, over all indices in [0, count).
#pragma once

#include "tensor.h"

#if defined(__CUDACC__)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#endif

namespace a2s {

// The grid of a CUDA launch walked in order on the CPU: tests prove the kernels' index arithmetic where there is no GPU.
struct EmulatedLaunch {
  template <class Kernel>
  static void run(const Tensor&, int64_t count, const Kernel& kernel) {
    for (int64_t i = 0; i < count; ++i) kernel(i);
  }
};

// On the CPU, shared among threads.
struct ParallelLaunch {
  template <class Kernel>
  static void run(const Tensor&, int64_t count, const Kernel& kernel) {
    torch::stable::parallel_for(0, count, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernel(i);
    });
  }
};

#if defined(__CUDACC__)

template <class Kernel>
__global__ void __launch_bounds__(256) run_kernel(Kernel kernel, int64_t count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    kernel(i);
  }
}

// On the current stream of the device of `on`.
struct CudaLaunch {
  template <class Kernel>
  static void run(const Tensor& on, int64_t count, const Kernel& kernel) {
    if (count == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
    constexpr int64_t threads = 256, max_blocks = int64_t{1} << 30;
    const auto blocks = static_cast<unsigned>(std::min((count + threads - 1) / threads, max_blocks));
    run_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(kernel, count);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) throw std::runtime_error(std::string("a2s: CUDA launch: ") + cudaGetErrorString(status));
  }
};

#endif

}  // namespace a2s
