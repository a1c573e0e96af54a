#include <torch/csrc/stable/library.h>

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  using a2s::CudaLaunch;
  m.impl("scale_softmax", TORCH_BOX(&a2s::scale_softmax<CudaLaunch>));
  m.impl("scale_softmax_backward", TORCH_BOX(&a2s::scale_softmax_backward<CudaLaunch>));
  m.impl("scale_merge", TORCH_BOX(&a2s::scale_merge<CudaLaunch>));
  m.impl("scale_merge_backward", TORCH_BOX(&a2s::scale_merge_backward<CudaLaunch>));
  m.impl("scale_average", TORCH_BOX(&a2s::scale_average<CudaLaunch>));
  m.impl("scale_average_backward", TORCH_BOX(&a2s::scale_average_backward<CudaLaunch>));
  m.impl("scale_max", TORCH_BOX(&a2s::scale_max<CudaLaunch>));
  m.impl("scale_max_backward", TORCH_BOX(&a2s::scale_max_backward<CudaLaunch>));
}
