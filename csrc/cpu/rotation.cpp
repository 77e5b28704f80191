#include "rotation.h"

#include <cmath>

#include "rows.h"

namespace int4kv {
namespace {

// Butterflies 1, 2, 4, ... apart, in this order: the order is part of the format.
INT4KV_CLONES void hadamard(float* x, int64_t head_dim) {
  const int64_t block = head_dim & -head_dim;
  const float norm = 1.0f / std::sqrt(static_cast<float>(block));
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t i = 0; i < head_dim; i += 2 * half) {
      for (int64_t j = i; j < i + half; ++j) {
        const float a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
    }
  }
  for (int64_t c = 0; c < head_dim; ++c) x[c] *= norm;
}

} // namespace

void rotate(float* x, const float* signs, int64_t head_dim) {
  for (int64_t c = 0; c < head_dim; ++c) x[c] *= signs[c];
  hadamard(x, head_dim);
}

void unrotate(float* x, const float* signs, int64_t head_dim) {
  hadamard(x, head_dim);
  for (int64_t c = 0; c < head_dim; ++c) x[c] *= signs[c];
}

} // namespace int4kv
