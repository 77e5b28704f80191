// merge: joins the splits of a query row, divides by their sum, rotates back and adds the values' centre. A threadgroup owns one row;
// its simdgroups take splits in turn, each lane the channels that rows.h gives it, and are joined through threadgroup memory.
// Grid: rows = batch * heads * queries, the query fastest.
#include "attend.h"

template <uint M>
[[kernel]] void merge_splits(
    const device float* partial [[buffer(0)]], const device float2* statistics [[buffer(1)]],
    const device float* v_rotation [[buffer(2)]], const device float* v_centre [[buffer(3)]], device void* out [[buffer(4)]],
    constant Int4kvAttend& p [[buffer(5)]],
    uint index [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  INT4KV_THREADGROUP(float, rows, M * INT4KV_MAX_HEAD_DIM);
  INT4KV_THREADGROUP(float, sums, M);
  uint units = p.head_dim / INT4KV_UNIT;
  if (p.v_rotation.kind != INT4KV_NO_ROTATION && lane < units) ask_for(v_rotation + INT4KV_UNIT * lane);
  const device float2* found = statistics + long(index) * p.splits;
  float maximum = kFloor, sum = 0.0f, x[kMaxUnits] = {};
  for (uint s = lane; s < p.splits; s += INT4KV_SIMD) maximum = max(maximum, found[s].x);
  maximum = simd_max(maximum);
  for (uint s = simdgroup; s < p.splits; s += kMergeTogether * M) {
    float part[kMergeTogether][kMaxUnits];
    float2 statistic[kMergeTogether];
#pragma unroll
    for (uint i = 0; i < kMergeTogether; i++) {
      uint held = min(s + i * M, p.splits - 1);
      statistic[i] = found[held];
      const device float* row = partial + (long(index) * p.splits + held) * p.head_dim + lane;
#pragma unroll
      for (uint u = 0; u < kMaxUnits; u++) part[i][u] = u < units ? row[INT4KV_UNIT * u] : 0.0f;
    }
#pragma unroll
    for (uint i = 0; i < kMergeTogether; i++) {
      float weight = s + i * M < p.splits ? fast::exp2(statistic[i].x - maximum) : 0.0f;
      sum = fma(weight, statistic[i].y, sum);
#pragma unroll
      for (uint u = 0; u < kMaxUnits; u++) x[u] = fma(weight, part[i][u], x[u]);
    }
  }
  for (uint u = 0; u < kMaxUnits; u++) rows[simdgroup * INT4KV_MAX_HEAD_DIM + INT4KV_UNIT * u + lane] = x[u];
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0) return;
  for (uint s = 1; s < M; s++) {
    sum += sums[s];
    for (uint u = 0; u < kMaxUnits; u++) x[u] += rows[s * INT4KV_MAX_HEAD_DIM + INT4KV_UNIT * u + lane];
  }
  QueryRow row = {index / p.queries % p.heads, index % p.queries, true};
  uint batch = index / p.queries / p.heads, kv_head = row.head / (p.heads / p.kv_heads);
  Output output = {v_rotation, v_centre, out, nullptr, nullptr};
  write_output(p, x, sum, batch, kv_head, row, units, lane, output);
}

INT4KV_ENTRY(merge, INT4KV_MERGE_SIMDGROUPS, merge_splits<INT4KV_MERGE_SIMDGROUPS>)
