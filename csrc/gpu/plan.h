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

// Splits fill the machine once, whatever the number of heads: one KV head must do it too.
inline int64_t count_splits(int64_t threadgroups, int64_t tokens, int64_t resident) {
  const int64_t wanted = resident / std::max<int64_t>(threadgroups, 1), whole = tokens / kPlanLimits.min_split;
  return std::max<int64_t>(1, std::min(wanted, whole > 0 ? whole + kPlanLimits.more_splits : 1));
}

// `constants`: a kernel with the widths and the codebook; `decode` if the call is such a step. `seen`: the tokens that a query row can see at most, its window or all.
inline AttendPlan plan_attend(const AttendShape& shape, Kernel constants, int64_t seen, const at::Tensor& on) {
  const int64_t rows = shape.group * shape.queries;
  const bool matrix = rows >= kPlanLimits.matrix_rows && shape.one_scale && has_matrix_kernel(shape.head_dim);
  const int64_t columns = matrix ? INT4KV_COLUMNS : std::min<int64_t>(std::max<int64_t>(rows, 1), INT4KV_PAIR);
  constants.entry = matrix ? Entry::kAttendMatrix : Entry::kAttendSimd;
  constants.size = static_cast<uint32_t>(matrix ? shape.head_dim : columns);
  constants.decode = matrix ? constants.decode : 0;
  const int64_t blocks = (rows + columns - 1) / columns, threadgroups = shape.batch * shape.kv_heads * blocks;
  return {constants, blocks, count_splits(threadgroups, seen, resident_threadgroups(constants, on))};
}

} // namespace int4kv
