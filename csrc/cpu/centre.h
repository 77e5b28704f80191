// The vector that quantize takes off the rows of a head, and reading adds again.
#pragma once
#include <algorithm>

#include "../ops.h"

namespace int4kv {

// One vector per head, [batch or 1, heads, head_dim]; null without one.
struct Centre {
  c10::MaybeOwned<at::Tensor> rows;
  int64_t batches, heads, head_dim;
  const float* numbers;

  explicit Centre(const OptionalTensor& centre)
      : rows(centre ? centre->expect_contiguous() : c10::MaybeOwned<at::Tensor>()), batches(centre ? rows->size(0) : 0),
        heads(centre ? rows->size(1) : 0), head_dim(centre ? rows->size(2) : 0),
        numbers(centre ? rows->const_data_ptr<float>() : nullptr) {}

  const float* of(int64_t b, int64_t h) const {
    return numbers ? numbers + ((batches > 1 ? b * heads : 0) + h) * head_dim : nullptr;
  }
};

// of(b, h, t, count) for the rows begin .. end of [batch, heads, tokens], as runs of at most `most` tokens of one head.
template <typename Of>
void for_runs(int64_t begin, int64_t end, int64_t heads, int64_t tokens, int64_t most, Of of) {
  while (begin < end) {
    const int64_t head = begin / tokens, t = begin % tokens;
    const int64_t count = std::min({most, end - begin, tokens - t});
    of(head / heads, head % heads, t, count);
    begin += count;
  }
}

} // namespace int4kv
