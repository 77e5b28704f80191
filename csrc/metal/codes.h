// Codes as numbers. A row is read in 32-bit words of eight codes (format.h draws the bytes); word w of a unit holds bytes 4w .. 4w + 3:
//
//   nibble          7    6    5    4    3    2    1    0
//   channel      19+4w 3+4w 18+4w 2+4w 17+4w 1+4w 16+4w 4w     of the unit's 32
//   pair t = (nibble t, nibble t + 4):  two codes that one half2 operation decodes, channels c and c + 2
#ifndef INT4KV_METAL_CODES_H
#define INT4KV_METAL_CODES_H

#include "rows.h"

constant constexpr uint kWordsPerUnit = 4;
constant constexpr uint kPairs = 4;

// The channel of a row that element e (0 or 1) of pair t of word w stands for.
inline uint channel_of(uint word, uint t, uint e) {
  uint low = INT4KV_UNIT * (word / kWordsPerUnit) + 4 * (word % kWordsPerUnit) + (t >> 1) + 2 * e;
  return low + (t & 1) * (INT4KV_UNIT / 2);
}

// code - 7.5, exactly: put four bits into the mantissa of a half, 1 + code / 16, and take it apart again. No integer conversion.
inline half2 level_pair(uint word, uint t) {
  uint bits = t == 0 ? word << 6 : t == 1 ? word << 2 : t == 2 ? word >> 2 : word >> 6;
  return fma(as_type<half2>((bits & 0x03C003C0u) | 0x3C003C00u), half2(16.0h), half2(-23.5h));
}

#endif
