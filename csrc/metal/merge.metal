// merge: joins the splits of a query row, divides by their sum, rotates back and adds the values' centre. A threadgroup owns one row;
// its simdgroups take splits in turn, each lane the channels that rows.h gives it, and count from their own maximum until they are joined
// through threadgroup memory. Grid: rows = batch * heads * queries, the query fastest.
#include "attend.h"

template <uint U>
inline void add_weighed(thread Joined& joined, thread const float* x, float sum, float weight) {
  joined.sum = fma(weight, sum, joined.sum);
  for (uint u = 0; u < U; u++) joined.x[u] = fma(weight, x[u], joined.x[u]);
}

// The splits first, first + M, ..., kMergeTogether of them: all are on their way together.
template <uint M, uint U>
inline void join_splits(
    thread Joined& joined, const device float* partial, const device float2* statistics, uint first, uint splits, uint lane) {
  float part[kMergeTogether][U];
  float2 statistic[kMergeTogether];
#pragma unroll
  for (uint i = 0; i < kMergeTogether; i++) {
    uint s = first + i * M;
    statistic[i] = float2(kFloor, 0.0f);
    for (uint u = 0; u < U; u++) part[i][u] = 0.0f;
    if (s >= splits) continue;
    statistic[i] = statistics[s];
    for (uint u = 0; u < U; u++) part[i][u] = partial[(long(s) * U + u) * INT4KV_UNIT + lane];
  }
  float before = joined.maximum;
#pragma unroll
  for (uint i = 0; i < kMergeTogether; i++) joined.maximum = max(joined.maximum, statistic[i].x);
  float shrink = fast::exp2(before - joined.maximum);
  joined.sum *= shrink;
  for (uint u = 0; u < U; u++) joined.x[u] *= shrink;
#pragma unroll
  for (uint i = 0; i < kMergeTogether; i++) {
    add_weighed<U>(joined, part[i], statistic[i].y, fast::exp2(statistic[i].x - joined.maximum));
  }
}

template <uint M, uint U>
[[kernel]] void merge(
    const device float* partial [[buffer(0)]], const device float2* statistics [[buffer(1)]],
    const device float* v_rotation [[buffer(2)]], const device float* v_centre [[buffer(3)]], device void* out [[buffer(4)]],
    constant Int4kvAttend& p [[buffer(5)]],
    uint index [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  INT4KV_THREADGROUP(float, rows, M * U * INT4KV_UNIT);
  INT4KV_THREADGROUP(float2, found, M);
  QueryRow row = {index / p.queries % p.heads, index % p.queries, true};
  uint batch = index / p.queries / p.heads, kv_head = row.head / p.group;
  Joined joined = {kFloor, 0.0f, {}};
  const device float* own = partial + long(index) * p.splits * (U * INT4KV_UNIT);
  await_tensors();
  RowRegisters signs = signs_of(p.v_rotation, v_rotation, simdgroup == 0 ? U : 0, lane);
  for (uint s = simdgroup; s < p.splits; s += kMergeTogether * M) {
    join_splits<M, U>(joined, own, statistics + long(index) * p.splits, s, p.splits, lane);
  }
  for (uint u = 0; u < U; u++) rows[(simdgroup * U + u) * INT4KV_UNIT + lane] = joined.x[u];
  if (lane == 0) found[simdgroup] = float2(joined.maximum, joined.sum);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0) return;
  float2 part = found[min(lane, M - 1)];
  float weight;
  Joined all = joined_statistics(part.x, lane < M ? part.y : 0.0f, weight);
#pragma unroll
  for (ushort s = 0; s < M; s++) {
    float of_part = simd_shuffle(weight, s);
    for (uint u = 0; u < U; u++) all.x[u] = fma(of_part, rows[(s * U + u) * INT4KV_UNIT + lane], all.x[u]);
  }
  Output output = {v_rotation, v_centre, out, nullptr, nullptr};
  write_output(p, all.x, all.sum, signs, batch, kv_head, row, U, lane, output);
}

INT4KV_ENTRY(merge_32, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 1>)
INT4KV_ENTRY(merge_64, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 2>)
INT4KV_ENTRY(merge_96, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 3>)
INT4KV_ENTRY(merge_128, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 4>)
INT4KV_ENTRY(merge_160, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 5>)
INT4KV_ENTRY(merge_192, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 6>)
INT4KV_ENTRY(merge_224, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 7>)
INT4KV_ENTRY(merge_256, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 8>)
