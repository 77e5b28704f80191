// AVX2: 8 lanes, 16 registers.
constexpr int kLanes = 8;
constexpr int kSums = 8;  // vectors of sums that stay in registers beside what they are made of
constexpr int kCopies = kLanes;  // of a number that multiplies a vector: a load is cheaper than a broadcast
constexpr bool kQuickLookup = true;  // lookup takes one instruction
#include "vectors.h"

typedef __m256i Table;

inline Table load_table(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

inline Ints lookup(Ints indices, Table table) {
  return (Ints)_mm256_shuffle_epi8(table, (__m256i)indices);
}

inline Floats lookup_floats(Ints indices, Table table) {
  return to_floats(lookup(indices, table));
}

// Added one after the other, whatever the compiler thinks: partial sums would take registers that there are not.
inline Ints dot2(Ints sum, Ints a, Ints b) {
  sum += (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
  asm("" : "+x"(sum));
  return sum;
}

inline Floats fma(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline Floats halves_to_floats(const uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

inline void store_halves(uint16_t* to, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline Ints load_shorts(const uint16_t* x) {
  return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}

inline void store_shorts(uint16_t* to, Ints x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)x, (__m256i)x), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline Ints load_bytes(const uint8_t* x) {
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
}

inline void store_bytes(uint8_t* to, Ints x) {
  const __m128i shorts = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(shorts, shorts));
}

inline Ints gather_bytes(Ints a, Ints b, Ints c, Ints d) {
  return (Ints)_mm256_packus_epi16(_mm256_packus_epi32((__m256i)a, (__m256i)b), _mm256_packus_epi32((__m256i)c, (__m256i)d));
}

inline void scatter_bytes(Ints x, Ints* out) {
  const __m256i low = _mm256_unpacklo_epi8((__m256i)x, (__m256i)Ints{}), high = _mm256_unpackhi_epi8((__m256i)x, (__m256i)Ints{});
  out[0] = (Ints)_mm256_unpacklo_epi16(low, (__m256i)Ints{});
  out[1] = (Ints)_mm256_unpackhi_epi16(low, (__m256i)Ints{});
  out[2] = (Ints)_mm256_unpacklo_epi16(high, (__m256i)Ints{});
  out[3] = (Ints)_mm256_unpackhi_epi16(high, (__m256i)Ints{});
}

inline void store_gathered(uint8_t* to, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32((__m256i)x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

inline Ints dot4(Ints sum, Ints a, Ints b) {
  return sum + (Ints)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b), _mm256_set1_epi16(1));
}

inline __m128i load_unit(const uint8_t* row, int64_t at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at));
}

inline void transpose(const uint8_t* const* rows, int64_t at, Ints* out) {
  __m256i x[4];
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_unit(rows[i], at)), load_unit(rows[i + 4], at), 1);
  }
  const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
  const __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
  out[0] = (Ints)_mm256_unpacklo_epi64(a, c);
  out[1] = (Ints)_mm256_unpackhi_epi64(a, c);
  out[2] = (Ints)_mm256_unpacklo_epi64(b, d);
  out[3] = (Ints)_mm256_unpackhi_epi64(b, d);
}

inline void interleave(const uint8_t* const* rows, int64_t at, int32_t* out) {
  const __m128i a = load_unit(rows[0], at), b = load_unit(rows[1], at), c = load_unit(rows[2], at), d = load_unit(rows[3], at);
  const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d), ab_high = _mm_unpackhi_epi8(a, b), cd_high = _mm_unpackhi_epi8(c, d);
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(ab, cd));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(ab_high, cd_high));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(ab_high, cd_high));
}

inline float sum(Floats x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

inline int32_t sum(Ints x) {
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  y = _mm_add_epi32(y, _mm_unpackhi_epi64(y, y));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 1)));
}

inline float largest(Floats x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

#include "powers.h"
