// merge: joins the splits of a query row, divides by their sum, rotates back and adds the values' centre. A threadgroup owns one row.
// A simdgroup takes some units of its channels (rows.h) and splits in turn with the others of these units. All know the statistics of
// all splits, a lane those of some; what the simdgroups come to is added up in threadgroup memory.
// Grid: rows = batch * heads * queries, the query fastest.
#include "attend.h"

// Units that a simdgroup takes: a weight goes from lane to lane once for all of them. Measured on an H200 with 8 and 16 simdgroups.
constexpr uint merge_units(uint units) {
  return units == 8 ? 4 : units % 2 == 0 ? 2 : 1;
}

// How many of M simdgroups share a unit: a power of two.
constexpr uint merge_shares(uint simdgroups, uint units) {
  const uint at_most = simdgroups * merge_units(units) / units;
  return at_most >= 16 ? 16 : at_most >= 8 ? 8 : at_most >= 4 ? 4 : at_most >= 2 ? 2 : 1;
}

// N channels of what a lane has joined, the maximum, and the lane's part of the sum.
template <uint N>
struct Channels {
  float maximum, sum, x[N];
};

// kMergeRound splits of a row, all on their way together. `own`: the lane's channels of the first split, `stride` from split to split.
template <uint shares, uint N>
inline void join_splits(
    thread Channels<N>& joined, const device float* own, const device float2* statistics, int splits, uint stride, uint share, uint lane) {
  constexpr int kOwn = kMergeRound / INT4KV_SIMD, kParts = kMergeRound / int(shares);
  float2 statistic[kOwn];
  float part[kParts][N];
#pragma unroll
  for (int i = 0; i < kOwn; i++) {
    int s = i * INT4KV_SIMD + int(lane);
    statistic[i] = float2(kFloor, 0.0f);
    if (s < splits) statistic[i] = statistics[s];
  }
#pragma unroll
  for (int i = 0; i < kParts; i++) {
    int s = i * int(shares) + int(share);
    for (uint n = 0; n < N; n++) part[i][n] = s < splits ? own[long(s) * stride + n * INT4KV_UNIT] : 0.0f;
  }
  float before = joined.maximum, top = statistic[0].x, weight[kOwn];
  for (int i = 1; i < kOwn; i++) top = max(top, statistic[i].x);
  joined.maximum = max(before, simd_max(top));
  float shrink = fast::exp2(before - joined.maximum);
  joined.sum *= shrink;
  for (uint n = 0; n < N; n++) joined.x[n] *= shrink;
  for (int i = 0; i < kOwn; i++) {
    weight[i] = fast::exp2(statistic[i].x - joined.maximum);
    joined.sum = fma(weight[i], statistic[i].y, joined.sum);
  }
#pragma unroll
  for (int i = 0; i < kParts; i++) {
    int s = i * int(shares);
    float of_split = simd_shuffle(weight[s / INT4KV_SIMD], ushort(s % INT4KV_SIMD + int(share)));
    for (uint n = 0; n < N; n++) joined.x[n] = fma(of_split, part[i][n], joined.x[n]);
  }
}

template <uint M, uint U>
[[kernel]] void merge(
    const device float* partial [[buffer(0)]], const device float2* statistics [[buffer(1)]],
    const device float* v_rotation [[buffer(2)]], const device float* v_centre [[buffer(3)]], device void* out [[buffer(4)]],
    constant Int4kvAttend& p [[buffer(5)]],
    uint index [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint kUnits = merge_units(U), kGroups = U / kUnits, kShares = merge_shares(M, U), kChannels = U * INT4KV_UNIT;
  INT4KV_THREADGROUP(float, rows, kShares * kChannels);
  QueryRow row = {index / p.queries % p.heads, index % p.queries, true};
  uint batch = index / p.queries / p.heads, kv_head = row.head / p.group, share = simdgroup / kGroups;
  uint channel = simdgroup % kGroups * kUnits * INT4KV_UNIT + lane;
  partial += long(index) * p.splits * kChannels + channel;
  statistics += long(index) * p.splits;
  await_tensors();
  RowRegisters signs = signs_of(p.v_rotation, v_rotation, simdgroup == 0 ? U : 0, lane);
  Channels<kUnits> joined = {kFloor, 0.0f, {}};
  for (int s = 0; share < kShares && s < int(p.splits); s += kMergeRound) {
    join_splits<kShares, kUnits>(joined, partial + long(s) * kChannels, statistics + s, int(p.splits) - s, kChannels, share, lane);
  }
  for (uint n = 0; n < kUnits; n++) {
    if (share < kShares) rows[share * kChannels + channel + n * INT4KV_UNIT] = joined.x[n];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0) return;
  float x[kMaxUnits] = {};
  for (uint u = 0; u < U; u++) {
    for (uint s = 0; s < kShares; s++) x[u] += rows[s * kChannels + u * INT4KV_UNIT + lane];
  }
  Output output = {v_rotation, v_centre, out, nullptr, nullptr};
  write_output(p, x, simd_sum(joined.sum), signs, batch, kv_head, row, U, lane, output);
}

INT4KV_ENTRY(merge_32, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 1>)
INT4KV_ENTRY(merge_64, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 2>)
INT4KV_ENTRY(merge_96, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 3>)
INT4KV_ENTRY(merge_128, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 4>)
INT4KV_ENTRY(merge_160, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 5>)
INT4KV_ENTRY(merge_192, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 6>)
INT4KV_ENTRY(merge_224, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 7>)
INT4KV_ENTRY(merge_256, INT4KV_MERGE_SIMDGROUPS, merge<INT4KV_MERGE_SIMDGROUPS, 8>)
