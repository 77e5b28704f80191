// The PTX instructions of csrc/cuda, by the PTX ISA. What a warp does together is a meeting of its 32 lanes, all of which have to come.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../../msl/shim/runtime.h"

namespace ptx {

using uint = unsigned;
using ushort = unsigned short;

// Meetings ---------------------------------------------------------------------------------------------------------------------------

template <typename Result, typename Value>
Result meet(void (*combine)(msl::Participants&), const Value& value, const msl::Site& site) {
  Result result;
  const msl::Rendezvous rendezvous = {site, msl::simdgroup_wide, false, true, combine, &value, &result};
  msl_meet(&rendezvous);
  return result;
}

template <typename T>
struct FromLane {
  T value;
  uint lane;
};
template <typename T>
void gather(msl::Participants& lanes) {
  for (int i = 0; i < 32; i++) {
    const uint lane = static_cast<const FromLane<T>*>(lanes.value[i])->lane % 32;
    *static_cast<T*>(lanes.result[i]) = static_cast<const FromLane<T>*>(lanes.value[lane])->value;
  }
}
template <typename T>
T from_lane(T x, uint lane, const msl::Site& site) {
  return meet<T>(&gather<T>, FromLane<T>{x, lane}, site);
}
inline void shfl_sync_idx_b32(uint& d, uint a, uint lane, int, int, MSL_SITE("shfl.sync.idx")) {
  d = from_lane(a, lane, site);
}

inline void collect_votes(msl::Participants& lanes) {
  uint votes = 0;
  for (int i = 0; i < 32; i++) votes |= uint(*static_cast<const bool*>(lanes.value[i])) << i;
  for (int i = 0; i < 32; i++) *static_cast<uint*>(lanes.result[i]) = votes;
}
inline uint votes(bool x, const msl::Site& site) {
  return meet<uint>(&collect_votes, x, site);
}

// Bits and numbers ---------------------------------------------------------------------------------------------------------------------

inline void prmt_b32(uint& d, uint a, uint b, uint selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint found = 0;
  for (int i = 0; i < 4; i++) {
    const uint pick = selector >> (4 * i) & 15, byte = uint(both >> (8 * (pick & 7))) & 255;
    found |= (pick & 8 ? byte >> 7 ? 255u : 0u : byte) << (8 * i);
  }
  d = found;
}
inline void lop3_b32(uint& d, uint a, uint b, uint c, uint table) {
  uint found = 0;
  for (uint i = 0; i < 8; i++)
    if (table >> i & 1) found |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  d = found;
}
inline void mad_lo_u32(uint& d, uint a, uint b, uint c) {
  d = a * b + c;
}

inline float to_float(uint half) {
  return float(__builtin_bit_cast(_Float16, ushort(half)));
}
inline uint to_half(double x) {
  return __builtin_bit_cast(ushort, _Float16(x));
}
template <typename Function>
uint of_halves(Function function) {
  return function(0) | function(16) << 16;
}
inline void cvt_rn_f16_f32(ushort& d, float x) {
  d = ushort(to_half(x));
}
inline void cvt_f32_f16(float& d, ushort x) {
  d = to_float(x);
}
inline void cvt_rn_f16x2_f32(uint& d, float high, float low) {
  d = to_half(low) | to_half(high) << 16;
}
inline void cvt_rn_bf16_f32(ushort& d, float x) {
  const uint bits = __builtin_bit_cast(uint, x);
  d = x != x ? 0x7fff : ushort((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void fma_rn_f16x2(uint& d, uint a, uint b, uint c) {
  d = of_halves([=](int s) { return to_half(double(to_float(a >> s)) * to_float(b >> s) + to_float(c >> s)); });
}
inline void mul_rn_f16x2(uint& d, uint a, uint b) {
  d = of_halves([=](int s) { return to_half(double(to_float(a >> s)) * to_float(b >> s)); });
}
inline void max_f16x2(uint& d, uint a, uint b) {
  d = of_halves([=](int s) { return to_half(std::fmax(to_float(a >> s), to_float(b >> s))); });
}
inline void max_NaN_f32(float& d, float a, float b) {
  d = a != a || b != b ? NAN : std::fmax(a, b);
}

inline float flushed(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}
inline void ex2_approx_ftz_f32(float& d, float x) {
  d = flushed(std::exp2(flushed(x)));
}
inline void rcp_approx_ftz_f32(float& d, float x) {
  d = flushed(1.0f / flushed(x));
}

// Shared memory, by the distance from a place in it ----------------------------------------------------------------------------------

inline char shared_base;
inline uint shared_address(const void* x) {
  return uint(static_cast<const char*>(x) - &shared_base);
}
inline char* shared(uint address) {
  return &shared_base + int(address);
}
inline void st_shared_b16(uint to, ushort x) {
  memcpy(shared(to), &x, sizeof x);
}
inline void prefetch_global_L2(const void*) {}
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() {}

// Asynchronous copies of a thread arrive as late as its waits allow; until then all bits are set where they go.
struct Copy {
  uint to;
  const void* from;
  uint bytes;
};
struct Copies {
  std::vector<std::vector<Copy>> groups{1};  // the last one is open

  void leave(size_t left) {
    for (; groups.size() > left + 1; groups.erase(groups.begin()))
      for (const Copy& copy : groups.front()) memcpy(shared(copy.to), copy.from, copy.bytes);
  }
};
inline Copies& copies() {
  static Copies of[1024];
  unsigned thread[3];
  msl_builtin(8, thread);
  return of[thread[0]];
}
inline void cp_async_ca_shared_global(uint to, const void* from, uint bytes) {
  memset(shared(to), 0xff, bytes);
  copies().groups.back().push_back({to, from, bytes});
}
inline void cp_async_cg_shared_global(uint to, const void* from, uint bytes) {
  cp_async_ca_shared_global(to, from, bytes);
}
inline void cp_async_commit_group() {
  copies().groups.emplace_back();
}
inline void cp_async_wait_group(uint left) {
  copies().leave(left);
}
inline void cp_async_wait_all() {
  cp_async_commit_group();
  copies().leave(0);
}

// Matrices. Lane 4 g + j has, of A (16 rows), rows g and g + 8; of B, column g; of C, rows g and g + 8, columns 2 j and 2 j + 1. ------------

struct Words {
  uint word[4];
};
struct Factors {
  uint a[4], b[2], c[4];
};

// Element k of a row of A or a column of B, of `count` to a register: register k / (4 count), lane k / count % 4.
template <typename Element, int K, bool fp>
void multiply(msl::Participants& lanes) {
  constexpr int count = 4 / sizeof(Element), steps = K / (4 * count);
  const auto of = [&](int lane) -> const Factors& { return *static_cast<const Factors*>(lanes.value[lane]); };
  for (int lane = 0; lane < 32; lane++) {
    for (int e = 0; e < 4; e++) {
      const int row = lane / 4, upper = e / 2, column = lane % 4 * 2 + e % 2;
      uint result = of(lane).c[e];
      for (int k = 0; k < K; k++) {
        const int step = k / (4 * count), j = k / count % 4, within = k % count * 8 * sizeof(Element);
        const uint a = of(4 * row + j).a[steps == 1 ? upper : 2 * step + upper] >> within, b = of(4 * column + j).b[step] >> within;
        if constexpr (fp) result = __builtin_bit_cast(uint, __builtin_bit_cast(float, result) + to_float(a) * to_float(b));
        else result += uint(int(int8_t(a)) * int(uint8_t(b)));
      }
      static_cast<Words*>(lanes.result[lane])->word[e] = result;
    }
  }
}

#define PTX_BITS(x) __builtin_bit_cast(uint, x)
template <typename C>
void give(const Words& found, C& d0, C& d1, C& d2, C& d3) {
  C* to[] = {&d0, &d1, &d2, &d3};
  for (int e = 0; e < 4; e++) *to[e] = __builtin_bit_cast(C, found.word[e]);
}
inline void mma_sync_aligned_m16n8k32_row_col_s32_s8_u8_s32(
    int& d0, int& d1, int& d2, int& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, int c0, int c1, int c2, int c3, MSL_SITE("mma")) {
  const Factors mine = {{a0, a1, a2, a3}, {b0, b1}, {uint(c0), uint(c1), uint(c2), uint(c3)}};
  give(meet<Words>(&multiply<int8_t, 32, false>, mine, site), d0, d1, d2, d3);
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, float c0, float c1, float c2, float c3,
    MSL_SITE("mma")) {
  const Factors mine = {{a0, a1, a2, a3}, {b0, b1}, {PTX_BITS(c0), PTX_BITS(c1), PTX_BITS(c2), PTX_BITS(c3)}};
  give(meet<Words>(&multiply<ushort, 16, true>, mine, site), d0, d1, d2, d3);
}
inline void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint a0, uint a1, uint b0, float c0, float c1, float c2, float c3, MSL_SITE("mma")) {
  const Factors mine = {{a0, a1}, {b0}, {PTX_BITS(c0), PTX_BITS(c1), PTX_BITS(c2), PTX_BITS(c3)}};
  give(meet<Words>(&multiply<ushort, 8, true>, mine, site), d0, d1, d2, d3);
}

// Matrix m of 8 rows of 16 bytes, whose addresses lanes 8 m .. 8 m + 7 give: lane 4 g + j gets column g of rows 2 j and 2 j + 1.
inline void transpose(msl::Participants& lanes) {
  const auto element = [&](int matrix, int row, int column) {
    ushort found;
    memcpy(&found, shared(*static_cast<const uint*>(lanes.value[8 * matrix + row])) + 2 * column, sizeof found);
    return uint(found);
  };
  for (int lane = 0; lane < 32; lane++)
    for (int m = 0; m < 4; m++)
      static_cast<Words*>(lanes.result[lane])->word[m] = element(m, lane % 4 * 2, lane / 4) | element(m, lane % 4 * 2 + 1, lane / 4) << 16;
}
inline void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint& d0, uint& d1, uint& d2, uint& d3, uint row, MSL_SITE("ldmatrix")) {
  give(meet<Words>(&transpose, row, site), d0, d1, d2, d3);
}

}  // namespace ptx
