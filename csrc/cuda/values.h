// Values of a tile of codes, added up as fp16 without a conversion: small integers are fp16 numbers as they are, of units of 2^-24.
//
//   bits of a product's V^T        first 8 tokens                     the other 8
//   uniform, up to 4 bits          code            level + n / 2      sign, complement     level - n / 2      n = 2^bits - 1
//                                  16 times that for the channels 16 further: it is where their nibble lies
//   Lloyd-Max                      128 + level                        sign, 128 - level    level - 128
//
// What they have beside the level is the same for all channels: one more product sums it up, with the very weights, and it is taken
// off in the end. Of the two halves it is of opposite sign, so that the sums stay as small as those of the levels. The units of two
// tokens come out of ldmatrix side by side: nibbles n and n + 4 of a word are channel 2 g + n / 2 + 16 (n % 2) of tokens 2 j and 2 j + 1.
#ifndef INT4KV_CUDA_VALUES_H
#define INT4KV_CUDA_VALUES_H

#include "sums.h"

constexpr uint kSigns = 0x80008000u;

// What the codes of odd nibbles are times too large.
constexpr uint odd_factor(Coding coding) {
  return coding.bits <= 4 && !is_table(coding) ? 16 : 1;
}

// x & mask, and of the second half the complement with signs, in one instruction.
template <bool second>
inline uint code_pair(uint x, uint mask) {
  if (!second) return x & mask;
  uint found;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(found) : "r"(x), "r"(mask), "r"(held(mask | kSigns)));
  return found;
}

template <bool second>
inline void byte_pairs(uint bytes, thread uint* pair) {
  if (!second) {
    pair[0] = bytes & 0x00ff00ffu;
    pair[1] = permute(bytes, 0, 0x4341);
    return;
  }
  const uint signs = held(kSigns);
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(pair[0]) : "r"(bytes), "r"(0x00ff00ffu), "r"(signs));
  pair[1] = permute(bytes, signs, 0x5351);
}

// pair[n]: of nibble n of two tokens.
template <bool second>
inline void value_pairs(CodeWord code, Coding coding, thread uint* pair) {
  if (is_table(coding)) {
    uint low = permute(code.low, 0, 0x3120), high = permute(code.high, 0, 0x3120), other = coding.bits == 5 ? mirrored(high) & 0x11111111u : 0;
#pragma unroll
    for (uint i = 0; i < 2; i++) {
      uint codes = low >> (16 * i), mirror = mirrored(codes);
      if (coding.bits == 3) mirror &= 0x77777777u;
      byte_pairs<second>(lloyd_bytes(second ? mirror : codes, second ? codes : mirror, (second ? other : high) >> (16 * i), coding.bits, true), pair + 2 * i);
    }
    return;
  }
  const uint mask = ((1u << coding.bits) - 1) * 0x10001u;
#pragma unroll
  for (uint n = 0; n < 4; n++) {
    if (coding.bits <= 4) {
      pair[n] = code_pair<second>(code.low >> (8 * (n / 2)), mask << (4 * (n % 2)));
    } else {
      uint whole = (code.low >> (4 * n) & 0x000f000fu) | (code.high >> (4 * n) & 0x000f000fu) << 4;
      pair[n] = code_pair<second>(whole, mask);
    }
  }
}

// Twice what the pairs have beside the level, of the first and of the other tokens.
inline uint2 twice_beside(Coding coding) {
  uint n = is_table(coding) ? 256 : (1u << coding.bits) - 1, even = coding.book == INT4KV_ABSMAX ? 1 : 0;
  return {(n + even) * 0x10001u, (n - even) * 0x10001u | kSigns};
}

inline void multiply_values(float (&o)[4], uint first, uint second, uint third, uint fourth, const half2* weight) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(first), "r"(second), "r"(third), "r"(fourth), "r"(as_type<uint>(weight[0])), "r"(as_type<uint>(weight[1])));
}

// Four matrices of 8 rows of 16 bytes, transposed in steps of 2 bytes; lane 8 m + r names row r of matrix m.
inline void read_transposed(const threadgroup uchar* row, uint (&found)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(shared_address(row))
               : "memory");
}

// The words of a plane of 4 bits for four units of 16 tokens, [half][unit], or two units: those `fixed` bytes on.
template <int D, int B>
inline void read_plane(const Tiles<D, B>& tiles, uint fixed, uint (&words)[2][4]) {
  constexpr uint bytes = row_bytes(D, v_bits);
  if (D == 64) {
    uint found[4];
    read_transposed(tiles.values() + ring_offset(bytes, tiles.value, fixed), found);
    for (int i = 0; i < 4; i++) words[i / 2][i % 2] = found[i];
  } else {
    read_transposed(tiles.values() + ring_offset(bytes, tiles.value, fixed), words[0]);
    read_transposed(tiles.values() + ring_offset(bytes, tiles.value, fixed + 8 * ring_stride(bytes)), words[1]);
  }
}

// The same of one unit and a narrower plane, from byte `from` of the rows of 8 tokens on.
template <int D, int B>
inline uint read_narrow(const Tiles<D, B>& tiles, uint token, uint from, uint width, Place at) {
  uint byte = 2 * at.column_ % (4 * width), position = 2 * at.column_ / (4 * width) * width, found[2];
  const threadgroup uchar* row = tiles.values() + (token + 2 * at.quarter) * ring_stride(row_bytes(D, v_bits)) + from + byte;
  for (uint e = 0; e < 2; e++) found[e] = *(const threadgroup ushort*)(row + e * ring_stride(row_bytes(D, v_bits)));
  return (permute(found[0], found[1], 0x5410) >> position) & 0x11111111u * ((1u << width) - 1);
}

// CodeWords [half][unit] of up to four units of 16 tokens.
template <int D, int B>
inline void read_values(const Tiles<D, B>& tiles, uint token, uint unit, Place at, CodeWord (&codes)[2][4]) {
  constexpr uint low = INT4KV_LOW_PLANE(v_bits), high = INT4KV_HIGH_PLANE(v_bits), count = D < 128 ? D / 32 : 4;
  uint low_words[2][4] = {}, high_words[2][4] = {};
  const uint fixed = token * ring_stride(row_bytes(D, v_bits)) + 16 * unit;
  if (low == 4) read_plane<D, B>(tiles, fixed, low_words);
  if (high == 4) read_plane<D, B>(tiles, fixed + D / 2, high_words);
#pragma unroll
  for (uint i = 0; i < 2 * count; i++) {
    uint half_index = i / count, u = i % count;
    CodeWord code = {low_words[half_index][u], high_words[half_index][u]};
    if (low < 4) code.low = read_narrow<D, B>(tiles, token + 8 * half_index, 4 * low * (unit + u), low, at);
    if (high > 0 && high < 4) code.high = read_narrow<D, B>(tiles, token + 8 * half_index, D * low / 8 + 4 * high * (unit + u), high, at);
    if (v_bits == 3) code = {code.low | code.high << 2, 0};
    codes[half_index][u] = code;
  }
}

// Two weights times the scales of their tokens, in the sums' unit.
inline half2 weight_pair(const float* weight, half2 scale, half2 inverse) {
  return half_pair(weight[0], weight[1]) * (scale * inverse);
}

template <int D, int B>
inline void add_codes(
    Tiles<D, B>& tiles, Coding coding, const float* weight, const Scales<2 * B>& scale, Place at, float*, Sums<D>& sums) {
  constexpr uint count = D < 128 ? D / 32 : 4;
  half2 pairs[B];
  for (int b = 0; b < B; b++) pairs[b] = weight_pair(weight + 2 * b, scale.pair(b), sums.inverse);
  const uint* beside = sums.beside;
  for (int s = 0; s < B / 2; s++) multiply_values(sums.offset, beside[0], beside[1], beside[2], beside[3], pairs + 2 * s);
#pragma unroll
  for (int s = 0; s < B / 2; s++) {
    const half2* weights = pairs + 2 * s;
#pragma unroll
    for (uint unit = 0; unit < D / 32; unit += count) {
      CodeWord codes[2][4];
      read_values<D, B>(tiles, 16 * s, unit, at, codes);
#pragma unroll
      for (uint u = 0; u < count; u++) {
        uint first[4], second[4];
        value_pairs<false>(codes[0][u], coding, first);
        value_pairs<true>(codes[1][u], coding, second);
#pragma unroll
        for (uint h = 0; h < 2; h++) {
          multiply_values(sums.o[2 * (unit + u) + h], first[2 * h], first[2 * h + 1], second[2 * h], second[2 * h + 1], weights);
        }
      }
    }
  }
}

// What a number in o stands for while codes are added, of even and odd nibbles, with a unit of 1.
inline float2 step_of(Coding coding) {
  constexpr float kSteps = 16777216.0f;  // 2^24
  return {kSteps, kSteps / float(odd_factor(coding))};
}

// Codes are to be added: the sums, of unit 1 if there are any, are put into the least unit, which the first tile raises. Four registers
// that lie together have what the pairs have beside the level, twice: a product does not wait for moves.
template <int D>
inline void begin_codes(Coding coding, Place at, Sums<D>& sums) {
  const float2 step = step_of(coding);
  const float factor[2] = {1.0f / (kLeastUnit * step.x), 1.0f / (kLeastUnit * step.y)};
  if (sums.unit != 0.0f) {
#pragma unroll
    for (int f = 0; f < D / 16; f++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sums.o[f][i] *= factor[i / 2];
    }
  }
  set_unit(sums, kLeastUnit);
  const uint2 beside = twice_beside(coding);
  for (int i = 0; i < 4; i++) sums.beside[i] = simd_shuffle(held(i < 2 ? beside.x : beside.y) + uint(i), ushort(at.lane)) - uint(i);
}

// All codes have been added: the sums become plain ones, of unit 1.
template <int D>
inline void settle(Coding coding, Sums<D>& sums) {
  const float2 step = step_of(coding);
  const float factor[2] = {sums.unit * step.x, sums.unit * step.y};
  const float beside[2] = {0.5f, 0.5f * float(odd_factor(coding))};
#pragma unroll
  for (int f = 0; f < D / 16; f++) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums.o[f][i] = fma(-beside[i / 2], sums.offset[i % 2], sums.o[f][i]) * factor[i / 2];
  }
  set_unit(sums, 1.0f);
}

#endif
