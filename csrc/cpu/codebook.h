// Groups of channels to and from codes: the arithmetic of format.h, bit by bit.
#pragma once
#include <cstdint>

#include "../format.h"

namespace int4kv {

// What a group stores beside its codes; `minimum` belongs to asymmetric alone.
struct GroupScale {
  float scale, minimum;
};

// codes[count] and the returned scale, not yet rounded to fp16, stand for x[count].
GroupScale encode(const float* x, int64_t count, int64_t bits, int codebook, uint8_t* codes);

// x[count] from the codes and the stored scale.
void decode(const uint8_t* codes, int64_t count, int64_t bits, int codebook, GroupScale by, float* x);

} // namespace int4kv
