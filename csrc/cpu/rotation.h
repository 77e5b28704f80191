// The randomised Hadamard rotation y = H (signs * x) / sqrt(n), on blocks of n = the largest power of two dividing head_dim.
// H is symmetric and its own inverse up to n, so the inverse is x = signs * (H y / sqrt(n)).
#pragma once
#include <cstdint>

namespace int4kv {

void rotate(float* x, const float* signs, int64_t head_dim);
void unrotate(float* x, const float* signs, int64_t head_dim);

} // namespace int4kv
