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
};

// What a group stores beside its codes, not yet rounded: what is beyond fp16 then becomes NaN. `minimum` belongs to asymmetric alone.
struct GroupScale {
  float scale, minimum;
};

// The bits of the largest |x|.
template <int U>
inline uint largest_bits(const thread float* x, Group group) {
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
template <int U>
inline void round_down(
    const thread float* x, Group group, float minimum, float inverse, float offset, float least, float most, thread uint* codes) {
  for (uint u = 0; u < U; u++) {
    if (group.holds(u)) codes[u] = uint(clamp(floor((x[u] - minimum) * inverse + offset), least, most));
  }
}

template <int U>
inline GroupScale encode_uniform(const thread float* x, Group group, uint bits, float largest, thread uint* codes) {
  int top = (1 << bits) - 1, squares = 0;
  float inverse = inverse_of(largest * (INT4KV_CLIP(bits) / (float(top) / 2.0f)), largest), sum = 0.0f;
  round_down<U>(x, group, 0.0f, inverse, float(1u << (bits - 1)), 0.0f, float(top), codes);
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    int odd = 2 * int(codes[u]) - top;
    float product = x[u] * float(odd);
    sum = u == group.first ? product : sum + product;
    squares += odd * odd;
  }
  float scale = 2.0f * fold_lanes(sum) / float(simd_sum(squares));
  return {inverse == 0.0f ? 0.0f : scale, 0.0f};
}

// How many borders between the levels lie at or below a distance from zero.
inline uint level_index(float distance, uint bits) {
  uint index = 0;
  for (uint i = 0; i + 1 < 1u << (bits - 1); i++) {
    float border = (kLloydLevels[bits - 3][i] + kLloydLevels[bits - 3][i + 1]) / 2.0f;
    index += distance >= border ? 1 : 0;
  }
  return index;
}

// One clip: the nearest levels, the sum of their products with y = x * inverse, and that of their squares.
template <int U>
inline float2 fit_levels(const thread float* x, Group group, float inverse, float stretch, uint bits, thread uint* codes) {
  uint half_count = 1u << (bits - 1);
  float sum = 0.0f;
  int squares = 0;
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    float y = x[u] * inverse;
    uint index = level_index(fabs(y * stretch), bits);
    float level = kLloydLevels[bits - 3][index], product = y * (y < 0.0f ? -level : level);
    codes[u] = y < 0.0f ? half_count - 1 - index : half_count + index;
    sum = u == group.first ? product : sum + product;
    squares += int(level) * int(level);
  }
  return float2(fold_lanes(sum), float(simd_sum(squares)));
}

// lane_sum(y * y), y = x * inverse.
template <int U>
inline float sum_squares(const thread float* x, Group group, float inverse) {
  float sum = 0.0f;
  for (uint u = 0; u < U; u++) {
    if (!group.holds(u)) continue;
    float y = x[u] * inverse, product = y * y;
    sum = u == group.first ? product : sum + product;
  }
  return fold_lanes(sum);
}

template <int U>
inline GroupScale encode_lloyd(const thread float* x, Group group, uint bits, float largest, thread uint* codes) {
  float unit = largest / INT4KV_LLOYD_LARGEST, inverse = inverse_of(unit, largest), best = -1.0f, best_sum = 1.0f;
  for (uint f = 0; f < INT4KV_FITS; f++) {
    uint tried[U];
    float2 found = fit_levels<U>(x, group, inverse, 1.0f / kLloydFits[bits - 3][f], bits, tried);
    float gain = found.x * found.x / found.y;
    if (gain <= best) continue;
    best = gain;
    best_sum = found.x;
    for (uint u = 0; u < U; u++) {
      if (group.holds(u)) codes[u] = tried[u];
    }
  }
  float scale = sum_squares<U>(x, group, inverse) / best_sum * unit;
  return {inverse == 0.0f ? 0.0f : scale, 0.0f};
}

template <int U>
inline GroupScale encode_absmax(const thread float* x, Group group, uint bits, float largest, thread uint* codes) {
  float middle = float(1u << (bits - 1)), step = largest / (middle - 1.0f), inverse = inverse_of(step, largest);
  round_down<U>(x, group, 0.0f, inverse, middle + 0.5f, 1.0f, 2.0f * middle - 1.0f, codes);
  return {inverse == 0.0f ? 0.0f : step, 0.0f};
}

template <int U>
inline GroupScale encode_asymmetric(const thread float* x, Group group, uint bits, thread uint* codes) {
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

template <int U>
inline GroupScale encode(const thread float* x, Group group, uint bits, uint book, thread uint* codes) {
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
  if (book == INT4KV_LLOYD && bits < 8) return encode_lloyd<U>(x, group, bits, largest, codes);
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
