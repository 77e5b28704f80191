// Which kernel attends and how the work is split: every threshold of the Metal backend is here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "../metal/parameters.h"

namespace int4kv {

// attend_matrix pads query rows to 8 columns; below this many the SIMD kernel does less work. From the static cost of both.
constexpr int64_t kMatrixRows = 3;

// A core of an Apple GPU holds about 208 KiB of registers: three threadgroups of 128 threads with 128 registers each.
constexpr int64_t kThreadgroupsPerCore = 3;

// Below this a split costs more in its merge than it brings; chosen, not measured: there is no Apple GPU here.
constexpr int64_t kMinSplit = 256;

struct AttendPlan {
  std::string kernel;
  int64_t columns, blocks, splits;
};

struct AttendShape {
  int64_t batch, kv_heads, group, queries, head_dim;
  bool one_scale;  // packed codes of a symmetric codebook with one scale per row, both K and V
};

inline bool has_matrix_kernel(int64_t head_dim) {
  return head_dim == 64 || head_dim == 128 || head_dim == 256;
}

// Splits fill the machine once, whatever the number of heads: one KV head must do it too.
inline int64_t count_splits(int64_t threadgroups, int64_t keys, int64_t cores) {
  const int64_t wanted = cores * kThreadgroupsPerCore / std::max<int64_t>(threadgroups, 1);
  return std::max<int64_t>(1, std::min(wanted, keys / kMinSplit));
}

// `seen`: the tokens that a query row can see at most, its window or all keys.
inline AttendPlan plan_attend(const AttendShape& shape, int64_t seen, int64_t cores) {
  const int64_t rows = shape.group * shape.queries;
  AttendPlan plan;
  const bool matrix = rows >= kMatrixRows && shape.one_scale && has_matrix_kernel(shape.head_dim);
  plan.columns = matrix ? INT4KV_COLUMNS : std::min<int64_t>(std::max<int64_t>(rows, 1), INT4KV_PAIR);
  plan.kernel = matrix ? "attend_matrix_" + std::to_string(shape.head_dim) : "attend_simd_" + std::to_string(plan.columns);
  plan.blocks = (rows + plan.columns - 1) / plan.columns;
  plan.splits = count_splits(shape.batch * shape.kv_heads * plan.blocks, seen, cores);
  return plan;
}

} // namespace int4kv
