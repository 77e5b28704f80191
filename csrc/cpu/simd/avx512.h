// AVX-512 with VNNI and VBMI: 16 lanes, 32 registers.
constexpr int kLanes = 16;
constexpr int kSums = 16;
constexpr int kCopies = 1;  // of a number that multiplies a vector: instructions broadcast from memory themselves
constexpr bool kQuickLookup = true;  // lookup takes one instruction
#include "vectors.h"

typedef __m512i Table;

inline Table load_table(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

inline Ints lookup(Ints indices, Table table) {
  return (Ints)_mm512_shuffle_epi8(table, (__m512i)indices);
}

inline Floats lookup_floats(Ints indices, Table table) {
  return to_floats(lookup(indices, table));
}

inline Ints dot2(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

inline Floats fma(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}

inline Floats halves_to_floats(const uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

inline void store_halves(uint16_t* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline Ints load_shorts(const uint16_t* x) {
  return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

inline void store_shorts(uint16_t* to, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)x));
}

inline Ints load_bytes(const uint8_t* x) {
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

inline void store_bytes(uint8_t* to, Ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}

inline Ints gather_bytes(Ints a, Ints b, Ints c, Ints d) {
  return (Ints)_mm512_packus_epi16(_mm512_packus_epi32((__m512i)a, (__m512i)b), _mm512_packus_epi32((__m512i)c, (__m512i)d));
}

inline void scatter_bytes(Ints x, Ints* out) {
  const __m512i low = _mm512_unpacklo_epi8((__m512i)x, (__m512i)Ints{}), high = _mm512_unpackhi_epi8((__m512i)x, (__m512i)Ints{});
  out[0] = (Ints)_mm512_unpacklo_epi16(low, (__m512i)Ints{});
  out[1] = (Ints)_mm512_unpackhi_epi16(low, (__m512i)Ints{});
  out[2] = (Ints)_mm512_unpacklo_epi16(high, (__m512i)Ints{});
  out[3] = (Ints)_mm512_unpackhi_epi16(high, (__m512i)Ints{});
}

// The packs work on every fourth of a register: its dwords are those of a, b, c and d in turn.
inline void store_gathered(uint8_t* to, Ints x) {
  store(reinterpret_cast<int32_t*>(to), __builtin_shufflevector(x, x, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

inline Ints dot4(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

inline __m128i load_unit(const uint8_t* row, int64_t at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at));
}

// Units of four rows, `apart` rows from each other, side by side. Inserts run beside the shuffles' one port.
inline __m512i load_units(const uint8_t* const* rows, int64_t apart, int64_t at) {
  __m512i x = _mm512_castsi128_si512(load_unit(rows[0], at));
  x = _mm512_inserti32x4(x, load_unit(rows[apart], at), 1);
  x = _mm512_inserti32x4(x, load_unit(rows[2 * apart], at), 2);
  return _mm512_inserti32x4(x, load_unit(rows[3 * apart], at), 3);
}

inline void transpose(const uint8_t* const* rows, int64_t at, Ints* out) {
  const __m512i x = load_units(rows, 4, at), y = load_units(rows + 1, 4, at), z = load_units(rows + 2, 4, at), w = load_units(rows + 3, 4, at);
  const __m512i a = _mm512_unpacklo_epi32(x, y), b = _mm512_unpackhi_epi32(x, y);
  const __m512i c = _mm512_unpacklo_epi32(z, w), d = _mm512_unpackhi_epi32(z, w);
  out[0] = (Ints)_mm512_unpacklo_epi64(a, c);
  out[1] = (Ints)_mm512_unpackhi_epi64(a, c);
  out[2] = (Ints)_mm512_unpacklo_epi64(b, d);
  out[3] = (Ints)_mm512_unpackhi_epi64(b, d);
}

// Byte i of row r goes from 16 r + i to 4 i + r.
inline void interleave(const uint8_t* const* rows, int64_t at, int32_t* out) {
  alignas(64) static const uint8_t kOrder[64] = {
      0, 16, 32, 48, 1, 17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51, 4,  20, 36, 52, 5,  21, 37, 53, 6,  22, 38, 54, 7,  23, 39, 55,
      8, 24, 40, 56, 9, 25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59, 12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
  _mm512_storeu_si512(out, _mm512_permutexvar_epi8(_mm512_load_si512(kOrder), load_units(rows, 1, at)));
}

inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline int32_t sum(Ints x) { return _mm512_reduce_add_epi32((__m512i)x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

inline Floats take_whole(Floats& x) {
  const Floats whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  x -= whole;
  return whole;
}

inline Floats times_power(Floats y, Floats whole) { return _mm512_scalef_ps(y, whole); }
#include "powers.h"
