// Codes as numbers, for attention. A row is read in words of eight codes (format.h draws the bytes); word w of a unit holds the codes
// that bytes 4w .. 4w + 3 of a plane of 4 bits stand for:
//
//   nibble          7    6    5    4    3    2    1    0
//   channel      19+4w 3+4w 18+4w 2+4w 17+4w 1+4w 16+4w 4w     of the unit's 32
//   pair t = (nibble t, nibble t + 4):  two codes that one half2 operation decodes, channels c and c + 2
//
// A plane of b < 4 bits has b words a unit: word w is bits b * (w / b) .. of each nibble of the plane's word w % b.
#ifndef INT4KV_METAL_CODES_H
#define INT4KV_METAL_CODES_H

#include "rows.h"

constant constexpr uint kWordsPerUnit = 4;
constant constexpr uint kPairs = 4;

// How wide codes are, INT4KV_PLAIN_BITS for rows that are not codes, and what they stand for; the lanes of a simdgroup are the table of
// lloyd's levels: `level` is that of the lane's own number.
struct Coding {
  uint bits, book;
  float level;
};

// Eight codes: their lowest bits in the nibbles of `low`, what is above those in the same nibbles of `high`.
struct CodeWord {
  uint low, high;
};

// What a lane loads for W = 1, 2, 4 or 8 consecutive words of codes: the words of each plane in which they lie.
template <int W>
struct PlaneWords {
  uint low[W < 2 ? 2 : W], high[W < 2 ? 2 : W];
};

// The channel of a row that element e (0 or 1) of pair t of word w stands for.
inline uint channel_of(uint word, uint t, uint e) {
  uint low = INT4KV_UNIT * (word / kWordsPerUnit) + 4 * (word % kWordsPerUnit) + (t >> 1) + 2 * e;
  return low + (t & 1) * (INT4KV_UNIT / 2);
}

// Of W words of codes from `first` (a multiple of W) on. `wide`: the row is aligned to what is loaded at once.
template <int W>
inline void load_plane(const device uchar* plane, uint width, uint first, bool wide, thread uint* words) {
  const device uint* from = (const device uint*)plane + (width == 4 ? first : first / kWordsPerUnit * width);
  uint count = width == 4 ? W : max(W * width / 4, width);
  if (wide && count % 4 == 0) {
    for (uint i = 0; i < count; i += 4) {
      uint4 four = *(const device uint4*)(from + i);
      for (uint j = 0; j < 4; j++) words[i + j] = four[j];
    }
  } else if (wide && count == 2) {
    uint2 two = *(const device uint2*)from;
    words[0] = two.x;
    words[1] = two.y;
  } else {
    for (uint i = 0; i < count; i++) words[i] = from[i];
  }
}

template <int W>
inline void load_words(const device uchar* row, uint bits, uint head_dim, uint first, bool wide, thread PlaneWords<W>& words) {
  uint low = INT4KV_LOW_PLANE(bits), high = INT4KV_HIGH_PLANE(bits);
  load_plane<W>(row, low, first, wide, words.low);
  if (high > 0) load_plane<W>(row + head_dim * low / 8, high, first, wide, words.high);
}

// Word w of the W: its `width` bits of every code at the bottom of the nibbles. `first` counts within a unit.
inline uint nibbles(const thread uint* words, uint width, uint first, uint w) {
  uint word = words[width == 4 ? w : w / kWordsPerUnit * width + (first + w) % width];
  return width == 4 ? word : (word >> (width * ((first + w) % kWordsPerUnit / width))) & 0x11111111u * ((1u << width) - 1);
}

template <int W>
inline CodeWord code_word(thread const PlaneWords<W>& words, uint bits, uint first, uint w) {
  uint within = W % kWordsPerUnit == 0 ? 0 : first % kWordsPerUnit;
  CodeWord code = {nibbles(words.low, INT4KV_LOW_PLANE(bits), within, w), 0};
  if (bits == 4) return code;
  uint high = nibbles(words.high, INT4KV_HIGH_PLANE(bits), within, w);
  if (bits == 3) code.low |= high << 2;
  else code.high = high;
  return code;
}

// Nibbles t and t + 4 of a word, moved from bits 4 t and 16 + 4 t to bits `to` and 16 + `to`.
inline uint move_pair(uint word, uint t, uint to) {
  return to >= 4 * t ? word << (to - 4 * t) : word >> (4 * t - to);
}

// Two codes as code - middle, exactly and without an integer conversion: m bits put into the mantissa of a half give 1 + code / 2^m,
// and one fma takes that apart again.
inline half2 place_pair(CodeWord code, uint t, uint bits, float middle) {
  uint m = max(bits, 4u), high = INT4KV_HIGH_PLANE(bits);
  uint found = (move_pair(code.low, t, 10 - m) & 0x000F000Fu << (10 - m)) | 0x3C003C00u;
  if (bits > 4) found |= move_pair(code.high, t, 14 - m) & (0x00010001u * ((1u << high) - 1)) << (14 - m);
  float whole = float(1u << m);
  return fma(as_type<half2>(found), half2(half(whole)), half2(half(-(whole + middle))));
}

// The level of Lloyd-Max that a code stands for: z (z^4 + c) to the nearest integer, for these numbers.
inline float lloyd_level(uint code, uint bits) {
  float step = bits == 3 ? 0.53125f : bits == 4 ? 0.27197266f : 0.13964844f;
  float c = bits == 3 ? 56.35f : bits == 4 ? 45.015f : 36.695f;
  float z = step * (float(code) - (float(1u << bits) / 2.0f - 0.5f)), squared = z * z;
  return floor(fma(z, fma(squared, squared, c), 0.5f));
}

inline Coding coding_of(uint bits, uint book, uint lane) {
  bool is_table = book == INT4KV_LLOYD && bits < 8;
  return {bits, book, is_table ? lloyd_level(lane, bits) : 0.0f};
}

// The levels of pair t. Lloyd-Max takes them from the lanes: a shuffle costs less than the arithmetic.
inline float2 level_pair(CodeWord code, uint t, Coding coding) {
  if (coding.book == INT4KV_LLOYD && coding.bits < 8) {
    uint pair = code.low >> (4 * t), above = coding.bits == 5 ? code.high >> (4 * t) << 4 : 0;
    ushort2 found = (as_type<ushort2>(pair) & ushort2(15)) | (as_type<ushort2>(above) & ushort2(16));
    return float2(simd_shuffle(coding.level, found.x), simd_shuffle(coding.level, found.y));
  }
  float half_count = float(1u << coding.bits) / 2.0f;
  float middle = coding.book == INT4KV_ASYMMETRIC ? 0.0f : coding.book == INT4KV_ABSMAX ? half_count : half_count - 0.5f;
  half2 x = place_pair(code, t, coding.bits, middle);
  return float2(float(x.x), float(x.y));
}

#endif
