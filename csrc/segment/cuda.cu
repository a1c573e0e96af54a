#include <torch/csrc/stable/library.h>

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("segment", TORCH_BOX(&a2s::segment)); }
