// Stands in for the CUDA runtime under the project's host code: a launch goes to a Python callback with the kernel's
// mangled name, its grid and its arguments. Device memory is the host's. And the one operation of the interpreter
// that numpy lacks: multiply-adds that round once.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

// Returns 0, or nonzero where the kernel was stopped. `requested`: dynamic shared memory that it may have.
using Launch = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared, size_t requested,
                       void** arguments);

Launch launch = nullptr;
cudaError_t last_error = cudaSuccess;
std::vector<Configuration> configurations;

std::unordered_map<const void*, std::string>& kernels() {
  static std::unordered_map<const void*, std::string> names;
  return names;
}

std::unordered_map<const void*, size_t> requested_shared;

}  // namespace

// Bytes, of an H200. A test may change it.
EXPORTED int shared_per_multiprocessor = 228 * 1024;

EXPORTED void ptx_on_launch(Launch callback) { launch = callback; }

EXPORTED cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                      cudaStream_t) {
  const unsigned grid_size[3] = {grid.x, grid.y, grid.z}, block_size[3] = {block.x, block.y, block.z};
  const bool stopped = !launch || launch(kernels().at(kernel).c_str(), grid_size, block_size, shared,
                                          requested_shared[kernel], arguments) != 0;
  last_error = stopped ? cudaErrorLaunchFailure : cudaSuccess;
  return last_error;
}

EXPORTED cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                        cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared, stream);
}

EXPORTED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                          config->stream);
}

EXPORTED cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* kernel) {
  *handle = reinterpret_cast<cudaKernel_t>(const_cast<void*>(kernel));
  return cudaSuccess;
}

EXPORTED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}

EXPORTED cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration configuration = configurations.back();
  configurations.pop_back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

EXPORTED void** __cudaRegisterFatBinary(void*) { return nullptr; }
EXPORTED void __cudaRegisterFatBinaryEnd(void**) {}
EXPORTED void __cudaUnregisterFatBinary(void**) {}
EXPORTED char __cudaInitModule(void**) { return 0; }
EXPORTED void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORTED void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                                     dim3*, int*) {
  kernels()[host] = name;
}

EXPORTED cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORTED cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORTED const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the PTX interpreter stopped the kernel";
}
EXPORTED cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) requested_shared[kernel] = value;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_per_multiprocessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_per_multiprocessor - 1024; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

// Operators and their schemas are registered in the namespace a2s_ptx, beside those that the package has registered.
using Library = void*;

template <class... Args>
int32_t in_torch(const char* function, Args... args) {
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  return reinterpret_cast<int32_t (*)(Args...)>(dlsym(torch, function))(args...);
}

EXPORTED int32_t aoti_torch_library_init_def(const char*, const char* file, uint32_t line, Library* library) {
  return in_torch(__func__, "a2s_ptx", file, line, library);
}
EXPORTED int32_t aoti_torch_library_init_impl(const char*, const char* key, const char* file, uint32_t line,
                                              Library* library) {
  return in_torch(__func__, "a2s_ptx", key, file, line, library);
}

// torch's part of a launch: one device, one stream.
EXPORTED int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
EXPORTED int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
EXPORTED int32_t aoti_torch_delete_device_guard(void*) { return 0; }

// out[i] = a[i] * b[i] + c[i], rounded once. A step is 0 for an operand that all lanes share, else 1.
template <class T>
__attribute__((target_clones("default", "avx2,fma"))) static void fused(int64_t n, const T* a, int64_t step_a, const T* b,
                                                                      int64_t step_b, const T* c, int64_t step_c, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = std::fma(a[i * step_a], b[i * step_b], c[i * step_c]);
}

EXPORTED void ptx_fma_f32(int64_t n, const float* a, int64_t sa, const float* b, int64_t sb, const float* c, int64_t sc,
                          float* out) {
  fused(n, a, sa, b, sb, c, sc, out);
}

EXPORTED void ptx_fma_f64(int64_t n, const double* a, int64_t sa, const double* b, int64_t sb, const double* c,
                          int64_t sc, double* out) {
  fused(n, a, sa, b, sb, c, sc, out);
}
