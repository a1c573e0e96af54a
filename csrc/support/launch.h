// Running kernels. A flat kernel is a host+device function object of a thread's index, run for all indices in
// [0, count). A block kernel works in blocks of kBlockThreads threads that share memory, in two steps:
// prepare(block, thread, shared) of all threads, then finish(block, thread, shared) of all threads.
#pragma once

#include "tensor.h"

#if defined(__CUDACC__)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#endif

namespace a2s {

constexpr int kBlockThreads = 256;

// V adjacent channels of a channels_last map, moved at once.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  std::remove_const_t<T> v[V];

  A2S_HD static Pack load(const T* from) {
    if constexpr (V == 1) return {{*from}};
    else return *reinterpret_cast<const Pack*>(from);
  }
  A2S_HD void store(std::remove_const_t<T>* to) const {
    if constexpr (V == 1) *to = v[0];
    else *reinterpret_cast<Pack*>(to) = *this;
  }
};

constexpr int kPackBytes = 16;

// Whether every pixel's channels are whole, aligned packs of V.
template <int V, class T>
bool packs(const Map<T>& map) {
  return map.stride_c == 1 && map.c % V == 0 && map.stride_n % V == 0 && map.stride_h % V == 0 &&
         map.stride_w % V == 0 && reinterpret_cast<uintptr_t>(map.data) % kPackBytes == 0 && map.channels_last;
}

// In a block kernel: calls body(pixel, channel) for this thread's share of all channels of `pixels` pixels, so that
// threads follow each other along the channels.
template <class Body>
A2S_HD void for_each_channel(int pixels, int64_t channels, int thread, const Body& body) {
  const auto step_pixels = static_cast<int>(kBlockThreads / channels);
  const int64_t step_channels = kBlockThreads % channels;
  auto pixel = static_cast<int>(thread / channels);
  int64_t channel = thread % channels;
  while (pixel < pixels) {
    body(pixel, channel);
    pixel += step_pixels;
    channel += step_channels;
    if (channel >= channels) {
      channel -= channels;
      ++pixel;
    }
  }
}

// The grid of a CUDA launch walked in order on the CPU: tests prove the kernels' index arithmetic where there is no GPU.
struct EmulatedLaunch {
  template <class Kernel>
  static void run(const Tensor&, int64_t count, const Kernel& kernel) {
    for (int64_t i = 0; i < count; ++i) kernel(i);
  }
  template <class Kernel>
  static void run_blocks(const Tensor&, int64_t blocks, const Kernel& kernel) {
    for (int64_t b = 0; b < blocks; ++b) {
      typename Kernel::Shared shared;
      for (int t = 0; t < kBlockThreads; ++t) kernel.prepare(b, t, shared);
      for (int t = 0; t < kBlockThreads; ++t) kernel.finish(b, t, shared);
    }
  }
};

#if defined(__CUDACC__)

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads, 1) run_kernel(const Kernel kernel, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x;
  if (i < count) kernel(i);
}

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads, 1) run_block_kernel(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel.prepare(blockIdx.x, threadIdx.x, shared);
  __syncthreads();
  kernel.finish(blockIdx.x, threadIdx.x, shared);
}

// On the current stream of the device of `on`.
struct CudaLaunch {
  template <class Kernel>
  static void run(const Tensor& on, int64_t count, const Kernel& kernel) {
    launch(on, (count + kBlockThreads - 1) / kBlockThreads, run_kernel<Kernel>, kernel, count);
  }
  template <class Kernel>
  static void run_blocks(const Tensor& on, int64_t blocks, const Kernel& kernel) {
    launch(on, blocks, run_block_kernel<Kernel>, kernel);
  }

 private:
  template <class Entry, class... Arguments>
  static void launch(const Tensor& on, int64_t blocks, Entry entry, const Arguments&... arguments) {
    if (blocks == 0) return;
    if (blocks > INT32_MAX) throw std::runtime_error("a2s: the maps are too large for one CUDA launch; split the batch.");
    const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
    entry<<<static_cast<unsigned>(blocks), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) throw std::runtime_error(std::string("a2s: CUDA launch: ") + cudaGetErrorString(status));
  }
};

#endif

}  // namespace a2s
