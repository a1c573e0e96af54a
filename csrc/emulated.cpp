// The CUDA kernels and their host code, looped over the grid on the CPU: how tests reach them where there is no GPU.
#include <torch/csrc/stable/library.h>

#include "interp/kernels.h"
#include "interp_shift_add/kernels.h"
#include "scale_merge/kernels.h"
#include "segment/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(a2s_emulated, CPU, m) {
  using a2s::EmulatedLaunch;
  m.impl("interp", TORCH_BOX(&a2s::interp<EmulatedLaunch>));
  m.impl("interp_backward", TORCH_BOX(&a2s::interp_backward<EmulatedLaunch>));
  m.impl("interp_concat", TORCH_BOX(&a2s::interp_concat<EmulatedLaunch>));
  m.impl("interp_shift_add", TORCH_BOX(&a2s::interp_shift_add<EmulatedLaunch>));
  m.impl("interp_shift_add_backward", TORCH_BOX(&a2s::interp_shift_add_backward<EmulatedLaunch>));
  m.impl("scale_softmax", TORCH_BOX(&a2s::scale_softmax<EmulatedLaunch>));
  m.impl("scale_softmax_backward", TORCH_BOX(&a2s::scale_softmax_backward<EmulatedLaunch>));
  m.impl("scale_merge", TORCH_BOX(&a2s::scale_merge<EmulatedLaunch>));
  m.impl("scale_merge_backward", TORCH_BOX(&a2s::scale_merge_backward<EmulatedLaunch>));
  m.impl("scale_average", TORCH_BOX(&a2s::scale_average<EmulatedLaunch>));
  m.impl("scale_average_backward", TORCH_BOX(&a2s::scale_average_backward<EmulatedLaunch>));
  m.impl("scale_max", TORCH_BOX(&a2s::scale_max<EmulatedLaunch>));
  m.impl("scale_max_backward", TORCH_BOX(&a2s::scale_max_backward<EmulatedLaunch>));
  m.impl("segment", TORCH_BOX(&a2s::segment<EmulatedLaunch>));
}
