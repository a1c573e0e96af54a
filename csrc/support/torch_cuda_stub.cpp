// A substitute for libtorch_cuda.so when linking against a CPU build of torch, like the stubs of the CUDA toolkit. At
// run time the library needs the real one, which every CUDA build of torch loads.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;
}
