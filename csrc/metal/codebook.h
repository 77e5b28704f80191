// Groups of a row (rows.h) to and from codes: the arithmetic of format.h, bit by bit. A group is `size` units from unit `first` on.
#ifndef INT4KV_METAL_CODEBOOK_H
#define INT4KV_METAL_CODEBOOK_H

#include "rows.h"

constant constexpr uint kLloydWidths = 3;  // 3, 4 and 5 bits
constant constexpr uint kMaxLevels = 16;   // of the upper half
constant constexpr float kLloydLevels[kLloydWidths][kMaxLevels] = {INT4KV_LLOYD_3, INT4KV_LLOYD_4, INT4KV_LLOYD_5};
constant constexpr float kLloydFits[kLloydWidths][INT4KV_FITS] = {INT4KV_FITS_3, INT4KV_FITS_4, INT4KV_FITS_5};

struct Group {
  uint first, size;

  bool holds(uint u) const {
    return u >= first && u < first + size;
  }
  bool begins_at(uint u) const {
    return u == first;
  }
};

// The one group of a row: what is asked of it is known as the code is compiled.
struct WholeRow {
  bool holds(uint) const {
    return true;
  }
  bool begins_at(uint u) const {
    return u == 0;
  }
};

// What a group stores beside its codes, not yet rounded: what is beyond fp16 then becomes NaN. `minimum` belongs to asymmetric alone.
struct GroupScale {
  float scale, minimum;
};

// The bits of the largest |x|.
template <int U, typename G>
inline uint largest_bits(const thread float* x, G group) {
  uint largest = 0;
  for (uint u = 0; u < U; u++) {
    if (group.holds(u)) largest = max(largest, as_type<uint>(x[u]) & 0x7fffffffu);
  }
  return simd_max(largest);
}

inline float fold_lanes(float x) {
  for (ushort apart = INT4KV_UNIT / 2; apart > 0; apart /= 2) x = x + simd_shuffle_xor(x, apart);
  return x;
}

inline float inverse_of(float step, float largest) {
  return largest < INT4KV_TINY ? 0.0f : 1.0f / step;
}

// codes[u] = floor((x[u] - minimum) * inverse + offset), from least to most.
template <int U, typename G>
inline void round_down(
    const thread float* x, G group, float minimum, float inverse, float offset, float least, float most, thread uint* codes) {
  for (uint u = 0; u < U; u++) {
    if (group.holds(u)) codes[u] = uint(clamp(floor((x[u] - minimum) * inverse + offset), least, most));
  }
}

template <int U, typename G>
inline GroupScale encode_uniform(const thread float* x, G group, uint bits, float largest, thread uint* codes) {
  int top = (1 << bits) - 1, squares = 0;
  float inverse = inverse_of(largest * (INT4KV_CLIP(bits) / (float(top) / 2.0f)), largest), sum = 0.0f;
  round_down<U>(x, group, 0.0f, inverse, float(1u << (bits - 1)), 0.0f, float(top), codes);
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    int odd = 2 * int(codes[u]) - top;
    float product = x[u] * float(odd);
    sum = group.begins_at(u) ? product : sum + product;
    squares += odd * odd;
  }
  float scale = 2.0f * fold_lanes(sum) / float(simd_sum(squares));
  return {inverse == 0.0f ? 0.0f : scale, 0.0f};
}

template <uint bits>
inline float upper_level(uint i) {
  return kLloydLevels[bits - 3][i];
}

// Half way from a level of the upper half to the next.
template <uint bits>
inline float upper_border(uint i) {
  return (upper_level<bits>(i) + upper_level<bits>(i + 1)) / 2.0f;
}

// How many borders lie at or below a distance from zero, ...
template <uint bits>
inline uint level_index(float distance) {
  uint index = 0;
#pragma unroll
  for (uint i = 0; i + 1 < 1u << (bits - 1); i++) index += distance >= upper_border<bits>(i) ? 1 : 0;
  return index;
}

// ... and the level there, by what each border adds: a table would wait for the index.
template <uint bits>
inline float level_at(float distance) {
  float level = upper_level<bits>(0);
#pragma unroll
  for (uint i = 0; i + 1 < 1u << (bits - 1); i++) {
    level += distance >= upper_border<bits>(i) ? upper_level<bits>(i + 1) - upper_level<bits>(i) : 0.0f;
  }
  return level;
}

// What of a clip says how good it is: p = the sum of |y| * level, and that of the levels' squares.
struct Fit {
  float p, squares;
};

inline void add_level(float y, float level, bool first, thread Fit& fit) {
  float product = y * level;
  fit.p = first ? product : fit.p + product;
  fit.squares = fma(level, level, fit.squares);  // an integer below 2^24
}

// The best clip so far, as what it stretches y by.
struct Clip {
  float gain, p, stretch;
};

inline Clip no_clip() {
  return {-1.0f, 1.0f, 1.0f};
}

inline void keep_better(Fit fit, float stretch, thread Clip& best) {
  float p = fold_lanes(fit.p), gain = p * p / float(simd_sum(int(fit.squares)));
  if (gain <= best.gain) return;
  best = {gain, p, stretch};
}

// The two levels that |y| may have, whichever clip is tried, by round(|y| / kWidth): csrc/cpu/kernels/lloyd.h proves that there is no
// third one. Lane i has them for i.
constant constexpr float kWidth = 8.25f;

template <uint bits>
inline float2 two_levels(uint lane) {
  constexpr uint widest = INT4KV_FITS - 1;
  float below = (float(lane) - 0.501f) * kWidth, above = (float(lane) + 0.501f) * kWidth;
  return float2(level_at<bits>(below / kLloydFits[bits - 3][widest]), level_at<bits>(above / kLloydFits[bits - 3][0]));
}

// y = x * inverse. One comparison for each clip decides between its two levels.
template <int U, uint bits, typename G>
inline Clip best_by_two_levels(const thread float* x, G group, float inverse, uint lane) {
  float2 own = two_levels<bits>(lane);
  Fit fits[INT4KV_FITS] = {};
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    float y = fabs(x[u] * inverse);
    ushort index = ushort(y * (1.0f / kWidth) + 0.5f);
    float low = simd_shuffle(own.x, index), high = simd_shuffle(own.y, index);
#pragma unroll
    for (uint f = 0; f < INT4KV_FITS; f++) {
      add_level(y, y * (2.0f / kLloydFits[bits - 3][f]) < low + high ? low : high, group.begins_at(u), fits[f]);
    }
  }
  Clip best = no_clip();
#pragma unroll
  for (uint f = 0; f < INT4KV_FITS; f++) keep_better(fits[f], 1.0f / kLloydFits[bits - 3][f], best);
  return best;
}

template <int U, uint bits, typename G>
inline Clip best_by_all_levels(const thread float* x, G group, float inverse) {
  Clip best = no_clip();
#pragma unroll 1
  for (uint f = 0; f < INT4KV_FITS; f++) {
    float stretch = 1.0f / kLloydFits[bits - 3][f];
    Fit fit = {};
    for (uint u = 0; u < U; u++) {
      if (!group.holds(u)) continue;
      float y = fabs(x[u] * inverse);
      add_level(y, level_at<bits>(y * stretch), group.begins_at(u), fit);
    }
    keep_better(fit, stretch, best);
  }
  return best;
}

// lane_sum(y * y), y = x * inverse.
template <int U, typename G>
inline float sum_squares(const thread float* x, G group, float inverse) {
  float sum = 0.0f;
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    float y = x[u] * inverse, product = y * y;
    sum = group.begins_at(u) ? product : sum + product;
  }
  return fold_lanes(sum);
}

template <int U, uint bits, typename G>
inline GroupScale encode_lloyd(const thread float* x, G group, float largest, uint lane, thread uint* codes) {
  constexpr uint kMiddle = 1u << (bits - 1);
  float unit = largest / INT4KV_LLOYD_LARGEST, inverse = inverse_of(unit, largest);
  Clip best = bits < 5 ? best_by_two_levels<U, bits>(x, group, inverse, lane) : best_by_all_levels<U, bits>(x, group, inverse);
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    float y = x[u] * inverse;
    uint index = level_index<bits>(fabs(y) * best.stretch);
    codes[u] = y < 0.0f ? kMiddle - 1 - index : kMiddle + index;
  }
  float scale = sum_squares<U>(x, group, inverse) / best.p * unit;
  return {inverse == 0.0f ? 0.0f : scale, 0.0f};
}

template <int U, typename G>
inline GroupScale encode_absmax(const thread float* x, G group, uint bits, float largest, thread uint* codes) {
  float middle = float(1u << (bits - 1)), step = largest / (middle - 1.0f), inverse = inverse_of(step, largest);
  round_down<U>(x, group, 0.0f, inverse, middle + 0.5f, 1.0f, 2.0f * middle - 1.0f, codes);
  return {inverse == 0.0f ? 0.0f : step, 0.0f};
}

template <int U, typename G>
inline GroupScale encode_asymmetric(const thread float* x, G group, uint bits, thread uint* codes) {
  float low = as_type<float>(INT4KV_FP32_INF_BITS), high = -low;
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    low = min(low, x[u]);
    high = max(high, x[u]);
  }
  float minimum = simd_min(low) + 0.0f, range = simd_max(high) - minimum, top = float((1u << bits) - 1), step = range / top;
  float inverse = inverse_of(step, range);
  round_down<U>(x, group, minimum, inverse, 0.5f, 0.0f, top, codes);
  return {inverse == 0.0f ? 0.0f : step, minimum};
}

template <int U, typename G>
inline GroupScale encode(const thread float* x, G group, uint bits, uint book, uint lane, thread uint* codes) {
  uint found = largest_bits<U>(x, group);
  float largest = as_type<float>(found);
  if (found >= INT4KV_FP32_INF_BITS) {
    for (uint u = 0; u < U; u++) {
      if (group.holds(u)) codes[u] = 1u << (bits - 1);
    }
    return {as_type<float>(INT4KV_FP32_INF_BITS), 0.0f};
  }
  if (book == INT4KV_ASYMMETRIC) return encode_asymmetric<U>(x, group, bits, codes);
  if (book == INT4KV_ABSMAX) return encode_absmax<U>(x, group, bits, largest, codes);
  if (book == INT4KV_LLOYD && bits == 3) return encode_lloyd<U, 3>(x, group, largest, lane, codes);
  if (book == INT4KV_LLOYD && bits == 4) return encode_lloyd<U, 4>(x, group, largest, lane, codes);
  if (book == INT4KV_LLOYD && bits == 5) return encode_lloyd<U, 5>(x, group, largest, lane, codes);
  return encode_uniform<U>(x, group, bits, largest, codes);
}

// What a code stands for before it is scaled.
inline float level_of(uint code, uint bits, uint book) {
  uint middle = 1u << (bits - 1);
  if (book == INT4KV_ASYMMETRIC) return float(code);
  if (book == INT4KV_ABSMAX) return float(code) - float(middle);
  if (book != INT4KV_LLOYD || bits == 8) return float(code) - (float(middle) - 0.5f);
  return code < middle ? -kLloydLevels[bits - 3][middle - 1 - code] : kLloydLevels[bits - 3][code - middle];
}

#endif
