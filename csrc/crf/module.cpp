// The Python module `_crf`: numpy in, numpy out. a2s_repro/inference/crf.py checks the arguments.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "mean_field.h"

namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// image (H, W, 3) uint8, scores (C, H, W) float32 -> marginals (C, H, W) float32.
Array<float> mean_field(const Array<uint8_t>& image, const Array<float>& scores, int iterations, float pos_w,
                        float pos_xy_std, float bi_w, float bi_xy_std, float bi_rgb_std, int threads) {
  const auto classes = scores.shape(0), height = scores.shape(1), width = scores.shape(2);
  Array<float> marginals({classes, height, width});
  float* const out = marginals.mutable_data();
  const py::gil_scoped_release release;
  a2s::crf::mean_field(image.data(), scores.data(), height, width, static_cast<int>(classes), iterations,
                       {pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std}, threads, out);
  return marginals;
}

}  // namespace

PYBIND11_MODULE(_crf, module) {
  using namespace pybind11::literals;
  module.def("mean_field", &mean_field, "image"_a, "scores"_a, py::kw_only(), "iterations"_a, "pos_w"_a,
             "pos_xy_std"_a, "bi_w"_a, "bi_xy_std"_a, "bi_rgb_std"_a, "threads"_a);
}
