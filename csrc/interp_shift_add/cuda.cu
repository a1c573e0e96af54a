#include <torch/csrc/stable/library.h>

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("interp_shift_add", TORCH_BOX(&a2s::interp_shift_add));
  m.impl("interp_shift_add_backward", TORCH_BOX(&a2s::interp_shift_add_backward));
}
