// Codes as bytes, four to a register: byte = level + an offset that all bytes of a codebook share.
//
// The levels of Lloyd-Max come from PRMT, which picks four bytes out of eight by three bits of a nibble each, and gives 0 for a nibble
// above 7 when the byte there is below 128. The levels are odd: of a code's two sides one look-up finds the magnitude, the other 0,
// and 128 + upper - lower has no carry from byte to byte.
//
// Magnitudes are those of format.h, lowest byte first. Bytes of Lloyd-Max are the nibbles 4 i + byte of a word, of other codebooks the
// nibbles 2 byte + i (i: which of the word's two registers).
#ifndef INT4KV_CUDA_LEVEL_BYTES_H
#define INT4KV_CUDA_LEVEL_BYTES_H

#include "../metal/codes.h"

constexpr bool is_table(Coding coding) {
  return coding.book == INT4KV_LLOYD && coding.bits < 8;
}

// Twice what a byte has beyond its level.
constexpr int twice_offset(Coding coding) {
  if (is_table(coding)) return 256;
  return (1 << coding.bits) - (coding.book == INT4KV_ABSMAX ? 0 : 1);
}

struct Magnitudes {
  int of[16];
};

// Bytes first .. first + 3 (or downwards) of the upper half's levels.
constexpr uint four_magnitudes(uint bits, int first, int step) {
  constexpr Magnitudes three = {INT4KV_LLOYD_3}, four = {INT4KV_LLOYD_4}, five = {INT4KV_LLOYD_5};
  const Magnitudes& levels = bits == 3 ? three : bits == 4 ? four : five;
  uint found = 0;
  for (int i = 0; i < 4; i++) found |= uint(levels.of[first + i * step]) << (8 * i);
  return found;
}

// A number in a register of each lane: PRMT takes one immediate, and what else it needs would be moved there each time. Of what is the
// same in all lanes the compiler does not keep it so; that a lane's own number comes back from a shuffle it does not know.
inline uint held(uint number) {
  uint lane = threadIdx.x % 32, same;
  asm("shfl.sync.idx.b32 %0, %1, %1, 31, -1;" : "=r"(same) : "r"(lane));
  return number ^ lane ^ same;
}

inline uint permute(uint a, uint b, uint selector) {
  uint found;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(selector));
  return found;
}

// Eight magnitudes by the lowest nibbles of `code`.
template <int bits, int first, int step>
inline uint look_up(uint code) {
  constexpr uint a = four_magnitudes(bits, first, step), b = four_magnitudes(bits, first + 4 * step, step);
  return permute(held(a), b, code);
}

// a * b + c, by units that have less to do than those of the rest.
inline uint multiply_add(uint a, uint b, uint c) {
  uint found;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(c));
  return found;
}

// The codes 2^bits - 1 - code: of the other side of zero.
inline uint mirrored(uint codes) {
  uint minus_one = held(~0u);
  return multiply_add(codes, minus_one, minus_one);
}

constexpr uint kByteTops = 0x80808080u;

// Of the four lowest nibbles of a word's planes and of the mirrored ones. The magnitude of a code below the middle is that of the
// mirrored code above it, and one table serves both. `multiplies`: by two multiply-adds instead of one addition, for code that keeps the
// units of additions, logic and look-ups busy besides.
inline uint lloyd_bytes(uint low, uint mirror, uint high, uint bits, bool multiplies) {
  if (bits == 3) return permute(held(0x80808080u - four_magnitudes(3, 3, -1)), kByteTops + four_magnitudes(3, 0, 1), low);
  if (bits == 4) {
    uint above = look_up<4, 7, -1>(mirror), below = look_up<4, 7, -1>(low);
    if (!multiplies) return kByteTops + above - below;
    return multiply_add(below, held(~0u), multiply_add(above, held(1u), kByteTops));
  }
  uint upper = permute(0xff00u, 0, high);  // 255 where the high plane has a 1
  uint above = look_up<5, 0, 1>(low) | look_up<5, 15, -1>(mirror);
  uint below = look_up<5, 15, -1>(low) | look_up<5, 0, 1>(mirror);
  return kByteTops + (above & upper) - (below & ~upper);
}

// Register i (0 or 1) of a word's eight bytes.
inline uint level_bytes(CodeWord code, Coding coding, uint i) {
  if (is_table(coding)) {
    uint low = code.low >> (16 * i);
    return lloyd_bytes(low, mirrored(low), code.high >> (16 * i), coding.bits, false);
  }
  constexpr uint nibbles = 0x0f0f0f0fu;
  if (i == 0) return (code.low & nibbles) | ((code.high & nibbles) << 4);
  return ((code.low >> 4) & nibbles) | (code.high & ~nibbles);
}

#endif
