// Any processor: 4 lanes, in plain C++ that compilers vectorise.
constexpr int kLanes = 4;
constexpr int kSums = 8;
constexpr int kCopies = kLanes;  // of a number that multiplies a vector: a load is cheaper than a broadcast
constexpr bool kQuickLookup = false;  // lookup takes one instruction
#include "vectors.h"

typedef int16_t SignedShorts __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

struct Table {
  const uint8_t* entries;
  Bytes steps[16];  // table[i] - table[i - 1], modulo 256
};

inline Table load_table(const uint8_t* table) {
  Table found{table, {}};
  for (int i = 0; i < 16; ++i) found.steps[i] = Bytes{} + static_cast<uint8_t>(table[i] - (i > 0 ? table[i - 1] : 0));
  return found;
}

// As a sum of the steps up to each index: comparisons are vectors where look-ups are not.
inline Ints lookup(Ints indices, const Table& table) {
  const Bytes index = (Bytes)indices;
  Bytes found = table.steps[0];
  for (uint8_t i = 1; i < 16; ++i) found += (Bytes)(index > static_cast<uint8_t>(i - 1)) & table.steps[i];
  return (Ints)found;
}

inline Floats lookup_floats(Ints indices, const Table& table) {
  Floats found;
  for (int i = 0; i < kLanes; ++i) found[i] = table.entries[indices[i] & 15];
  return found;
}

inline Ints dot2(Ints sum, Ints a, Ints b) {
#if defined(__SSE2__)
  return sum + (Ints)__builtin_ia32_pmaddwd128((SignedShorts)a, (SignedShorts)b);
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

inline Floats fma(Floats a, Floats b, Floats c) {
  return a * b + c;
}

// A subnormal one gets an exponent of its own and loses it again; infinities and NaN keep theirs.
inline Floats halves_to_floats(const uint16_t* x) {
  Ints half;
  for (int i = 0; i < kLanes; ++i) half[i] = x[i];
  const Ints exponent = half & 0x7c00, magnitude = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
  const Floats subnormal = from_bits(magnitude + (113 << 23)) - from_bits(splat(113 << 23));
  const Ints normal = magnitude + (exponent == 0x7c00 ? splat(224 << 23) : splat(112 << 23));
  return from_bits((exponent == 0 ? bits_of(subnormal) : normal) | sign);
}

inline Ints load_shorts(const uint16_t* x) {
  return Ints{x[0], x[1], x[2], x[3]};
}

inline void store_shorts(uint16_t* to, Ints x) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<uint16_t>(x[i]);
}

inline Ints load_bytes(const uint8_t* x) {
  return Ints{x[0], x[1], x[2], x[3]};
}

inline void store_bytes(uint8_t* to, Ints x) {
  const uint8_t bytes[4] = {static_cast<uint8_t>(x[0]), static_cast<uint8_t>(x[1]), static_cast<uint8_t>(x[2]), static_cast<uint8_t>(x[3])};
  std::memcpy(to, bytes, 4);
}

inline Ints gather_bytes(Ints a, Ints b, Ints c, Ints d) {
  const auto least = [](Ints x) { return x > 255 ? splat(255) : x; };
  return least(a) | least(b) << 8 | least(c) << 16 | least(d) << 24;
}

inline void scatter_bytes(Ints x, Ints* out) {
  for (int i = 0; i < 4; ++i) out[i] = x >> 8 * i & 255;
}

inline void store_gathered(uint8_t* to, Ints x) {
  Ints each[4];
  scatter_bytes(x, each);
  for (int i = 0; i < 4; ++i) store_bytes(to + i * kLanes, each[i]);
}

inline Ints dot4(Ints sum, Ints a, Ints b) {
  return dot2(dot2(sum, even_bytes(a), even_bytes(b)), odd_bytes(a), odd_bytes(b));
}

// To nearest even: a subnormal one by adding 0.5, whose last bit is worth what theirs is; the others in integers.
inline void store_halves(uint16_t* to, Floats x) {
  const Ints magnitude = bits_of(x) & INT32_MAX, beyond = magnitude > 0x7f800000 ? splat(0x7e00) : splat(0x7c00);
  const Ints subnormal = bits_of(from_bits(magnitude) + 0.5f) - (126 << 23);
  const Ints normal = ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10);
  Ints half = magnitude < (113 << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? beyond : half;
  store_shorts(to, half | (bits_of(x) >> 16 & 0x8000));
}

inline void transpose(const uint8_t* const* rows, int64_t at, Ints* out) {
  int32_t x[4][4];
  for (int r = 0; r < 4; ++r) std::memcpy(x[r], rows[r] + at, 16);
  for (int i = 0; i < 4; ++i) out[i] = Ints{x[0][i], x[1][i], x[2][i], x[3][i]};
}

inline void interleave(const uint8_t* const* rows, int64_t at, int32_t* out) {
  uint8_t* to = reinterpret_cast<uint8_t*>(out);
  for (int i = 0; i < 16; ++i) {
    for (int r = 0; r < 4; ++r) to[4 * i + r] = rows[r][at + i];
  }
}

inline float sum(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline int32_t sum(Ints x) { return (x[0] + x[2]) + (x[1] + x[3]); }

inline float largest(Floats x) {
  const float a = x[2] > x[0] ? x[2] : x[0], b = x[3] > x[1] ? x[3] : x[1];
  return b > a ? b : a;
}

#include "powers.h"
