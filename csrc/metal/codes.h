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

// How wide codes are, INT4KV_PLAIN_BITS for rows that are not codes, and what they stand for.
struct Coding {
  uint bits, book;
};

// Eight codes: their lowest bits in the nibbles of `low`, what is above those in the same nibbles of `high`.
struct CodeWord {
  uint low, high;
};

// What a lane loads for W = 2, 4 or 8 consecutive words of codes: the words of each plane in which they lie.
template <int W>
struct PlaneWords {
  uint low[W], high[W];
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
  uint count = max(W * width / 4, min(width, uint(W)));
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
  uint word = words[w / kWordsPerUnit * width + w % width];
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

// Two codes as step * (code - middle), without an integer conversion: m bits put into the mantissa of a half give 1 + code / 2^m,
// and one fma takes that apart again. Exactly for a step of 1.
inline half2 place_pair(CodeWord code, uint t, uint bits, float middle, float step) {
  uint m = max(bits, 4u), high = INT4KV_HIGH_PLANE(bits);
  uint found = (move_pair(code.low, t, 10 - m) & 0x000F000Fu << (10 - m)) | 0x3C003C00u;
  if (bits > 4) found |= move_pair(code.high, t, 14 - m) & (0x00010001u * ((1u << high) - 1)) << (14 - m);
  float whole = float(1u << m);
  return fma(as_type<half2>(found), half2(half(whole * step)), half2(half(-(whole + middle) * step)));
}

// The levels of Lloyd-Max by arithmetic: z (z^4 + c) with z = step * (code - middle), to the nearest integer, for these numbers.
inline float lloyd_step(uint bits) {
  return bits == 3 ? 0.53125f : bits == 4 ? 0.27197266f : 0.13964844f;
}

// Adding 1.5 * 2^23 leaves no bits for a fraction.
inline float lloyd_level(float z, uint bits) {
  float c = bits == 3 ? 56.35f : bits == 4 ? 45.015f : 36.695f, squared = z * z;
  return fma(z, fma(squared, squared, c), 12582912.0f) - 12582912.0f;
}

// The levels of pair t.
inline float2 level_pair(CodeWord code, uint t, Coding coding) {
  float half_count = float(1u << coding.bits) / 2.0f;
  float middle = coding.book == INT4KV_ASYMMETRIC ? 0.0f : coding.book == INT4KV_ABSMAX ? half_count : half_count - 0.5f;
  bool lloyd = coding.book == INT4KV_LLOYD && coding.bits < 8;
  half2 x = place_pair(code, t, coding.bits, middle, lloyd ? lloyd_step(coding.bits) : 1.0f);
  if (!lloyd) return float2(float(x.x), float(x.y));
  return float2(lloyd_level(float(x.x), coding.bits), lloyd_level(float(x.y), coding.bits));
}

#endif
