// What is the same on every instruction set once kLanes is known: vectors of 32-bit lanes in the compiler's own terms. The sets' headers
// include this inside their namespace and add the words that need instructions of their own:
//
//   dot2(sum, a, b)           sum + a.low * b.low + a.high * b.high of the signed 16-bit halves of each lane
//   lookup(indices, table)    every byte (0 .. 15) replaced by table[byte]
//   lookup_floats(i, table)   table[lowest byte] of each lane; the bytes above it are 128 or more
//   transpose(rows, at, out)  16 bytes at `at` of kLanes rows -> four vectors, lane = row
//   interleave(rows, at, out) 16 bytes at `at` of four rows -> 16 lanes of memory, lane = byte, its four bytes = rows
//   fma(a, b, c)              a * b + c, rounded once where the processor can
//   halves_to_floats(x)       kLanes fp16 numbers
//   store_halves(to, x)       as fp16, to nearest even; of a NaN only that it is one
//   load_shorts(x)            kLanes unsigned 16-bit integers; load_bytes(x): 8-bit ones; store_shorts(to, x), store_bytes(to, x)
//   gather_bytes(a, b, c, d)  0 .. 2^15 - 1, those beyond 255 as 255, as one vector of bytes in an order of the set's own
//   scatter_bytes(x, out)     the four vectors again; store_gathered(to, x) their bytes, a's first
//   dot4(sum, a, b)           sum + the products of the four bytes of each lane, all under 128
//   sum(x), largest(x)        over the lanes; largest passes over NaN
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntsInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef float FloatsInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Ints load(const int32_t* x) { return *reinterpret_cast<const IntsInMemory*>(x); }
inline Floats load(const float* x) { return *reinterpret_cast<const FloatsInMemory*>(x); }
inline void store(int32_t* to, Ints x) { *reinterpret_cast<IntsInMemory*>(to) = x; }
inline void store(float* to, Floats x) { *reinterpret_cast<FloatsInMemory*>(to) = x; }
inline Ints splat(int32_t x) { return Ints{} + x; }
inline Floats splat(float x) { return Floats{} + x; }

// A number that multiplies vectors, kept in kCopies copies.
inline Ints load_copies(const int32_t* x) { return kCopies == 1 ? splat(*x) : load(x); }
inline void store_copies(int32_t* to, int32_t x) { kCopies == 1 ? static_cast<void>(*to = x) : store(to, splat(x)); }

// Neighbours of 16 bits as one pair each, in copies.
inline void store_pairs(const uint16_t* x, int count, int32_t* to) {
  if (kCopies == 1) return static_cast<void>(std::memcpy(to, x, 4 * count));
  for (int i = 0; i < count; ++i) {
    int32_t pair;
    std::memcpy(&pair, x + 2 * i, 4);
    store_copies(to + i * kCopies, pair);
  }
}

inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
inline Ints bits_of(Floats x) { return reinterpret_cast<Ints>(x); }
inline Floats from_bits(Ints x) { return reinterpret_cast<Floats>(x); }
inline Floats magnitude_of(Floats x) { return from_bits(bits_of(x) & INT32_MAX); }
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// Of the four bytes of each lane, 0 and 2 or 1 and 3, as 16-bit halves.
inline Ints even_bytes(Ints x) { return x & 0x00ff00ff; }
inline Ints odd_bytes(Ints x) { return reinterpret_cast<Ints>(reinterpret_cast<Shorts>(x) >> 8); }

inline Ints lane_numbers() {
  Ints x;
  for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

// All ones in lane i if bit i is set.
inline Ints lanes_of(uint64_t bits) {
  return (splat(static_cast<int32_t>(bits)) >> lane_numbers() & 1) != 0;
}

// |x| < 2^22 to the nearest integer, ties to even: adding 1.5 * 2^23 leaves no bits for a fraction.
constexpr float kNoFraction = 12582912.0f;
inline Floats nearest(Floats x) { return (x + kNoFraction) - kNoFraction; }
inline Ints to_ints(Floats x) { return bits_of(x + kNoFraction) - 0x4b400000; }

// The integer nearest to x >= -126 (less counts as -126), of which x keeps what is left; and y * 2^whole. AVX-512 has its own.
template <typename Vector>
inline Vector take_whole(Vector& x) {
  x = x < -126.0f ? splat(-126.0f) : x;
  const Vector whole = nearest(x);
  x -= whole;
  return whole;
}

template <typename Vector>
inline Vector times_power(Vector y, Vector whole) {
  return y * from_bits((__builtin_convertvector(whole, Ints) + 127) << 23);
}
