// a * b + c stays two roundings: the orders are the format's.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "rows.h"

namespace int4kv {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(8), aligned(1)));
typedef int32_t Integers __attribute__((vector_size(32), aligned(4)));

constexpr int kMaxLevels = 16;  // of the upper half

// The upper half of a Lloyd-Max codebook, the borders between its levels, and 1 / f of the clips to try.
struct Lloyd {
  int count;
  float levels[kMaxLevels], borders[kMaxLevels], stretches[INT4KV_FITS];

  Lloyd(std::initializer_list<int> upper, std::initializer_list<float> fits) : count(static_cast<int>(upper.size())) {
    std::copy(upper.begin(), upper.end(), levels);
    for (int i = 0; i + 1 < count; ++i) borders[i] = (levels[i] + levels[i + 1]) / 2;
    std::transform(fits.begin(), fits.end(), stretches, [](float fit) { return 1.0f / fit; });
  }
};

const Lloyd& lloyd_of(int64_t bits) {
  static const Lloyd three(INT4KV_LLOYD_3, INT4KV_FITS_3), four(INT4KV_LLOYD_4, INT4KV_FITS_4), five(INT4KV_LLOYD_5, INT4KV_FITS_5);
  return bits == 3 ? three : bits == 4 ? four : five;
}

float largest_of(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t c = 0; c < n; ++c) {
    uint32_t bits;
    std::memcpy(&bits, x + c, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float value;
  std::memcpy(&value, &largest, 4);
  return value;
}

float lane_sum(const float* y, int64_t n) {
  float lane[INT4KV_UNIT];
  std::memcpy(lane, y, sizeof lane);
  for (int64_t u = INT4KV_UNIT; u < n; u += INT4KV_UNIT) {
    for (int i = 0; i < INT4KV_UNIT; ++i) lane[i] += y[u + i];
  }
  for (int half = INT4KV_UNIT / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

inline Lanes load_lanes(const float* x) {
  return *reinterpret_cast<const Lanes*>(x);
}

inline float inverse_of(float step, float largest) {
  return largest < INT4KV_TINY ? 0.0f : 1.0f / step;
}

// code[c] = floor(x[c] * inverse + offset), from least to most.
INT4KV_CLONES void round_down(const float* x, int64_t n, float inverse, float offset, float least, float most, uint8_t* codes) {
  for (int64_t c = 0; c < n; ++c) {
    const float level = std::floor(x[c] * inverse + offset);
    codes[c] = static_cast<uint8_t>(level < least ? least : (level > most ? most : level));
  }
}

INT4KV_CLONES GroupScale encode_uniform(const float* x, int64_t n, int64_t bits, float largest, uint8_t* codes) {
  const int32_t top = (1 << bits) - 1;
  const float inverse = inverse_of(largest * (INT4KV_CLIP(bits) / (top / 2.0f)), largest);
  round_down(x, n, inverse, static_cast<float>(1 << (bits - 1)), 0.0f, static_cast<float>(top), codes);
  float product[INT4KV_MAX_HEAD_DIM];
  int32_t squares = 0;
  for (int64_t c = 0; c < n; ++c) {
    const int32_t odd = 2 * codes[c] - top;
    product[c] = x[c] * static_cast<float>(odd);
    squares += odd * odd;
  }
  return {inverse == 0.0f ? 0.0f : 2.0f * lane_sum(product, n) / static_cast<float>(squares), 0.0f};
}

inline Integers is_below(Lanes y) {
  return y < 0.0f;
}

// One clip: the codes of the levels nearest to y * stretch, the levels' products with y and the sum of their squares.
INT4KV_CLONES float fit_levels(const Lloyd& book, const float* y, int64_t n, float stretch, int32_t* codes, float* product) {
  Lanes squares = {};
  for (int64_t c = 0; c < n; c += kLanes) {
    const Lanes at = load_lanes(y + c), stretched = at * stretch, distance = is_below(at) ? -stretched : stretched;
    Lanes level = Lanes{} + book.levels[0];
    Integers index = {};
    for (int i = 0; i + 1 < book.count; ++i) {
      const Integers beyond = distance >= book.borders[i];
      level = beyond ? Lanes{} + book.levels[i + 1] : level;
      index -= beyond;
    }
    squares += level * level;
    *reinterpret_cast<Lanes*>(product + c) = at * (is_below(at) ? -level : level);
    *reinterpret_cast<Integers*>(codes + c) = is_below(at) ? book.count - 1 - index : book.count + index;
  }
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += squares[i];
  return sum;
}

GroupScale encode_lloyd(const float* x, int64_t n, int64_t bits, float largest, uint8_t* codes) {
  const Lloyd& book = lloyd_of(bits);
  const float unit = largest / INT4KV_LLOYD_LARGEST, inverse = inverse_of(unit, largest);
  float y[INT4KV_MAX_HEAD_DIM], product[INT4KV_MAX_HEAD_DIM], best = -1.0f, best_sum = 1.0f;
  int32_t tried[INT4KV_MAX_HEAD_DIM];
  for (int64_t c = 0; c < n; ++c) y[c] = x[c] * inverse;
  for (const float stretch : book.stretches) {
    const float squares = fit_levels(book, y, n, stretch, tried, product), sum = lane_sum(product, n), gain = sum * sum / squares;
    if (gain <= best) continue;
    best = gain;
    best_sum = sum;
    std::copy_n(tried, n, codes);
  }
  for (int64_t c = 0; c < n; ++c) product[c] = y[c] * y[c];
  return {inverse == 0.0f ? 0.0f : lane_sum(product, n) / best_sum * unit, 0.0f};
}

GroupScale encode_absmax(const float* x, int64_t n, int64_t bits, float largest, uint8_t* codes) {
  const float half = static_cast<float>(1 << (bits - 1)), step = largest / (half - 1.0f), inverse = inverse_of(step, largest);
  round_down(x, n, inverse, half + 0.5f, 1.0f, 2.0f * half - 1.0f, codes);
  return {inverse == 0.0f ? 0.0f : step, 0.0f};
}

GroupScale encode_asymmetric(const float* x, int64_t n, int64_t bits, uint8_t* codes) {
  const auto [low, high] = std::minmax_element(x, x + n);
  const float minimum = *low + 0.0f, range = *high - minimum, top = static_cast<float>((1 << bits) - 1), step = range / top;
  const float inverse = inverse_of(step, range);
  float above[INT4KV_MAX_HEAD_DIM];
  for (int64_t c = 0; c < n; ++c) above[c] = x[c] - minimum;
  round_down(above, n, inverse, 0.5f, 0.0f, top, codes);
  return {inverse == 0.0f ? 0.0f : step, minimum};
}

inline Lanes load_codes(const uint8_t* codes) {
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(codes), Integers), Lanes);
}

// The integer nearest to |y| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
inline Lanes nearest(Lanes y) {
  return (y + 12582912.0f) - 12582912.0f;
}

INT4KV_CLONES void decode_lloyd(const uint8_t* codes, int64_t n, int64_t bits, float scale, float* out) {
  const float middle = ((1 << bits) - 1) / 2.0f, a = INT4KV_LLOYD_A(bits), b = INT4KV_LLOYD_B(bits);
  for (int64_t c = 0; c < n; c += kLanes) {
    const Lanes x = load_codes(codes + c) - middle, squared = x * x;
    *reinterpret_cast<Lanes*>(out + c) = scale * nearest(a * x * (squared * squared * b + 1.0f));
  }
}

INT4KV_CLONES void decode_evenly(const uint8_t* codes, int64_t n, float middle, float scale, float* out) {
  for (int64_t c = 0; c < n; c += kLanes) *reinterpret_cast<Lanes*>(out + c) = scale * (load_codes(codes + c) - middle);
}

INT4KV_CLONES void decode_asymmetric(const uint8_t* codes, int64_t n, GroupScale by, float* out) {
  for (int64_t c = 0; c < n; c += kLanes) *reinterpret_cast<Lanes*>(out + c) = by.scale * load_codes(codes + c) + by.minimum;
}

} // namespace

GroupScale encode(const float* x, int64_t count, int64_t bits, int codebook, uint8_t* codes) {
  const float largest = largest_of(x, count);
  if (!std::isfinite(largest)) {
    std::memset(codes, 1 << (bits - 1), count);
    return {NAN, NAN};
  }
  if (codebook == INT4KV_ASYMMETRIC) return encode_asymmetric(x, count, bits, codes);
  if (codebook == INT4KV_ABSMAX) return encode_absmax(x, count, bits, largest, codes);
  if (codebook == INT4KV_LLOYD && bits < 8) return encode_lloyd(x, count, bits, largest, codes);
  return encode_uniform(x, count, bits, largest, codes);
}

void decode(const uint8_t* codes, int64_t count, int64_t bits, int codebook, GroupScale by, float* x) {
  if (codebook == INT4KV_LLOYD && bits < 8) return decode_lloyd(codes, count, bits, by.scale, x);
  if (codebook == INT4KV_ASYMMETRIC) return decode_asymmetric(codes, count, by, x);
  const float half = static_cast<float>(1 << (bits - 1));
  decode_evenly(codes, count, codebook == INT4KV_ABSMAX ? half : half - 0.5f, by.scale, x);
}

} // namespace int4kv
