// The vector that quantize takes off the rows of a head, and reading adds again.
#pragma once
#include "../ops.h"

namespace int4kv {

// One vector per head, [batch or 1, heads, head_dim]; null without one.
struct Centre {
  at::Tensor rows;
  int64_t batches, heads, head_dim;

  explicit Centre(const OptionalTensor& centre)
      : rows(centre ? centre->contiguous() : at::Tensor()), batches(centre ? rows.size(0) : 0), heads(centre ? rows.size(1) : 0),
        head_dim(centre ? rows.size(2) : 0) {}

  const float* of(int64_t b, int64_t h) const {
    return rows.defined() ? rows.const_data_ptr<float>() + ((batches > 1 ? b * heads : 0) + h) * head_dim : nullptr;
  }
};

// of(b, h, t) for the rows begin .. end of [batch, heads, tokens]: divisions once, not for every row.
template <typename Of>
void for_rows(int64_t begin, int64_t end, int64_t heads, int64_t tokens, Of of) {
  int64_t t = begin % tokens, h = begin / tokens % heads, b = begin / tokens / heads;
  for (int64_t i = begin; i < end; ++i) {
    of(b, h, t);
    if (++t < tokens) continue;
    t = 0;
    if (++h < heads) continue;
    h = 0;
    ++b;
  }
}

} // namespace int4kv
