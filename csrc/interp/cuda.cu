#include <torch/csrc/stable/library.h>

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("interp", TORCH_BOX(&a2s::interp));
  m.impl("interp_backward", TORCH_BOX(&a2s::interp_backward));
  m.impl("interp_concat", TORCH_BOX(&a2s::interp_concat));
}
