// 64-bit Arm: 4 lanes, 32 registers.
constexpr int kLanes = 4;
constexpr int kSums = 16;
constexpr int kCopies = kLanes;  // of a number that multiplies a vector: a load is cheaper than a broadcast
constexpr bool kQuickLookup = true;  // lookup takes one instruction
#include "vectors.h"

typedef uint8x16_t Table;

inline Table load_table(const uint8_t* table) {
  return vld1q_u8(table);
}

inline Ints lookup(Ints indices, Table table) {
  return (Ints)vqtbl1q_u8(table, (uint8x16_t)indices);
}

inline Floats lookup_floats(Ints indices, Table table) {
  return to_floats(lookup(indices, table));
}

inline Ints dot2(Ints sum, Ints a, Ints b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return (Ints)vaddq_s32((int32x4_t)sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

inline Floats fma(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

inline Floats halves_to_floats(const uint16_t* x) {
  return (Floats)vcvt_f32_f16((float16x4_t)vld1_u16(x));
}

inline void store_halves(uint16_t* to, Floats x) {
  vst1_u16(to, (uint16x4_t)vcvt_f16_f32((float32x4_t)x));
}

inline Ints load_shorts(const uint16_t* x) {
  return (Ints)vmovl_u16(vld1_u16(x));
}

inline void store_shorts(uint16_t* to, Ints x) {
  vst1_u16(to, vmovn_u32((uint32x4_t)x));
}

inline Ints load_bytes(const uint8_t* x) {
  uint32_t four;
  std::memcpy(&four, x, 4);
  return (Ints)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

inline void store_bytes(uint8_t* to, Ints x) {
  const uint16x4_t shorts = vmovn_u32((uint32x4_t)x);
  const uint8x8_t bytes = vmovn_u16(vcombine_u16(shorts, shorts));
  std::memcpy(to, &bytes, 4);
}

inline Ints gather_bytes(Ints a, Ints b, Ints c, Ints d) {
  const uint16x8_t ab = vqmovn_high_u32(vqmovn_u32((uint32x4_t)a), (uint32x4_t)b);
  const uint16x8_t cd = vqmovn_high_u32(vqmovn_u32((uint32x4_t)c), (uint32x4_t)d);
  return (Ints)vqmovn_high_u16(vqmovn_u16(ab), cd);
}

inline void scatter_bytes(Ints x, Ints* out) {
  const uint16x8_t low = vmovl_u8(vget_low_u8((uint8x16_t)x)), high = vmovl_high_u8((uint8x16_t)x);
  out[0] = (Ints)vmovl_u16(vget_low_u16(low));
  out[1] = (Ints)vmovl_high_u16(low);
  out[2] = (Ints)vmovl_u16(vget_low_u16(high));
  out[3] = (Ints)vmovl_high_u16(high);
}

inline void store_gathered(uint8_t* to, Ints x) {
  vst1q_u8(to, (uint8x16_t)x);
}

inline Ints dot4(Ints sum, Ints a, Ints b) {
  const uint8x16_t x = (uint8x16_t)a, y = (uint8x16_t)b;
  const uint32x4_t low = vpaddlq_u16(vmull_u8(vget_low_u8(x), vget_low_u8(y))), high = vpaddlq_u16(vmull_high_u8(x, y));
  return sum + (Ints)vpaddq_u32(low, high);
}

inline void transpose(const uint8_t* const* rows, int64_t at, Ints* out) {
  uint32x4_t x[4];
  for (int i = 0; i < 4; ++i) x[i] = vreinterpretq_u32_u8(vld1q_u8(rows[i] + at));
  const uint64x2_t a = (uint64x2_t)vtrn1q_u32(x[0], x[1]), b = (uint64x2_t)vtrn2q_u32(x[0], x[1]);
  const uint64x2_t c = (uint64x2_t)vtrn1q_u32(x[2], x[3]), d = (uint64x2_t)vtrn2q_u32(x[2], x[3]);
  out[0] = (Ints)vtrn1q_u64(a, c);
  out[1] = (Ints)vtrn1q_u64(b, d);
  out[2] = (Ints)vtrn2q_u64(a, c);
  out[3] = (Ints)vtrn2q_u64(b, d);
}

inline void interleave(const uint8_t* const* rows, int64_t at, int32_t* out) {
  uint8x16x4_t x;
  for (int i = 0; i < 4; ++i) x.val[i] = vld1q_u8(rows[i] + at);
  vst4q_u8(reinterpret_cast<uint8_t*>(out), x);
}

inline float sum(Floats x) { return vaddvq_f32((float32x4_t)x); }
inline int32_t sum(Ints x) { return vaddvq_s32((int32x4_t)x); }
inline float largest(Floats x) { return vmaxnmvq_f32((float32x4_t)x); }

#include "powers.h"
