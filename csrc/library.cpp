// The schemas of all operators. Sizes are SymInt, so that torch.compile does not recompile for each shape.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(a2s, m) {
  m.def("interp(Tensor x, SymInt height, SymInt width) -> Tensor");
  m.def("interp_backward(Tensor grad, SymInt height, SymInt width) -> Tensor");
  m.def("interp_concat(Tensor[] features, SymInt height, SymInt width) -> Tensor");
  m.def("interp_concat_backward(Tensor grad, Tensor[] features) -> Tensor[]");
  m.def("interp_shift_add(Tensor planes, Tensor base) -> Tensor");
  m.def("interp_shift_add_backward(Tensor grad, SymInt height, SymInt width) -> Tensor");
  m.def("scale_softmax(Tensor logits) -> Tensor");
  m.def("scale_softmax_backward(Tensor grad, Tensor weights) -> Tensor");
  m.def(
      "scale_merge(Tensor[] scores, Tensor logits, SymInt height, SymInt width, Tensor? recalibration)"
      " -> (Tensor merged, Tensor weights)");
  m.def(
      "scale_merge_backward(Tensor grad, Tensor? grad_weights, Tensor[] scores, Tensor logits, Tensor weights,"
      " Tensor? recalibration) -> (Tensor[] grad_scores, Tensor grad_logits, Tensor[] grad_recalibration)");
  m.def("scale_average(Tensor[] scores, SymInt height, SymInt width, float factor) -> Tensor");
  m.def("scale_average_backward(Tensor grad, Tensor[] scores, float factor) -> Tensor[]");
  m.def("scale_max(Tensor[] scores, SymInt height, SymInt width) -> (Tensor merged, Tensor winner)");
  m.def("scale_max_backward(Tensor grad, Tensor winner, Tensor[] scores) -> Tensor[]");
  m.def("segment(Tensor scores, SymInt height, SymInt width) -> Tensor");

  // Without CUDA code: on GPUs, convolutions are torch's.
  m.def("winograd_input(Tensor x, SymInt dilation, SymInt first, bool mirrored, Tensor(a!) points) -> ()");
  m.def(
      "winograd_output(Tensor points, Tensor? bias, SymInt dilation, SymInt first, bool mirrored, Tensor(a!) y) -> ()");
  m.def("winograd_output_grad(Tensor grad, SymInt dilation, SymInt first, Tensor(a!) points) -> ()");
}
