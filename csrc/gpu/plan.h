// Which kernel attends and how the work is split.
#pragma once
#include <algorithm>
#include <cstdint>

#include "backend.h"

namespace int4kv {

struct AttendShape {
  int64_t batch, kv_heads, group, queries, head_dim;
  bool one_scale;  // packed codes of a symmetric codebook with one scale per row, both K and V
};

struct AttendPlan {
  Kernel kernel;
  int64_t blocks, splits;  // of the query rows of a KV head, of the tokens
};

inline bool has_matrix_kernel(int64_t head_dim) {
  return head_dim == 64 || head_dim == 128 || head_dim == 256;
}

// How many splits so many tokens are worth.
inline int64_t splits_worth(const Kernel& kernel, int64_t tokens) {
  const Int4kvSplitting by = splitting_of(kernel);
  return int4kv_splits(static_cast<int>(std::min<int64_t>(tokens, 1 << 30)), by.whole, by.fine, by.round, by.more);
}

// Splits fill the machine once, whatever the number of heads: one KV head must do it too.
inline int64_t count_splits(const Kernel& kernel, int64_t threadgroups, int64_t tokens, int64_t resident) {
  const int64_t wanted = resident / std::max<int64_t>(threadgroups, 1);
  return std::max<int64_t>(1, std::min(wanted, splits_worth(kernel, tokens)));
}

// Large threadgroups have a multiprocessor each, and begin and end alone on it: they are for as many as there are multiprocessors, or
// for much work in each; and not where they would leave a fifth of the multiprocessors idle that smaller ones fill.
inline bool is_for_large(const Kernel& large, int64_t threadgroups, int64_t tokens, int64_t resident) {
  constexpr int64_t kLong = 4096;
  if (threadgroups > resident && tokens < kLong) return false;
  if (threadgroups * splits_worth(large, tokens) <= resident) return true;
  const int64_t used = threadgroups * std::max<int64_t>(1, resident / threadgroups), rounds = (used + resident - 1) / resident;
  return 5 * used >= 4 * rounds * resident;
}

// `constants`: a kernel with the widths and the codebook; `decode` if the call is such a step. `seen`: the tokens that a query row can see at most, its window or all.
inline AttendPlan plan_attend(const AttendShape& shape, Kernel constants, int64_t seen, const at::Tensor& on) {
  const int64_t rows = shape.group * shape.queries;
  const bool matrix = rows >= kMatrixRows && shape.one_scale && has_matrix_kernel(shape.head_dim);
  const int64_t columns = matrix ? INT4KV_COLUMNS : std::min<int64_t>(std::max<int64_t>(rows, 1), INT4KV_PAIR);
  constants.entry = matrix ? Entry::kAttendMatrix : Entry::kAttendSimd;
  constants.size = static_cast<uint32_t>(matrix ? shape.head_dim : columns);
  constants.decode = matrix ? constants.decode : 0;
  const int64_t blocks = (rows + columns - 1) / columns, threadgroups = std::max<int64_t>(1, shape.batch * shape.kv_heads * blocks);
  Kernel large = constants;
  large.large = 1;
  if (matrix && has_large(large, on) && is_for_large(large, threadgroups, seen, resident_threadgroups(large, on))) constants = large;
  return {constants, blocks, count_splits(constants, threadgroups, seen, resident_threadgroups(constants, on))};
}

} // namespace int4kv
