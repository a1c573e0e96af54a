// The dense CRF for Python's ctypes. a2s_repro/inference/crf.py checks the arguments.
#include <new>
#include <stdexcept>

#include "mean_field.h"

// mean_field. Returns 0, 1 if a standard deviation is too small for the image, or 2 if memory runs out.
extern "C" __attribute__((visibility("default"))) int a2s_mean_field(
    const uint8_t* image, const float* scores, int64_t height, int64_t width, int classes, int64_t iterations,
    float pos_w, float pos_xy_std, float bi_w, float bi_xy_std, float bi_rgb_std, int threads, float* marginals) {
  try {
    a2s::crf::mean_field(image, scores, height, width, classes, iterations,
                         {pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std}, threads, marginals);
    return 0;
  } catch (const std::invalid_argument&) {
    return 1;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}
