// Codes of the Lloyd-Max levels: ../../format.h. Everything is done on y = |x| / unit, since a level has its value's sign.
//
// Levels are integers, so the borders between them are halves of integers and floor(2 y / f) alone decides: a byte, as no border lies
// beyond 127.5. A quad is four vectors of kLanes such integers as one vector of bytes (gather_bytes): borders are compared and levels
// looked up for 4 kLanes channels at once. n is filled up to whole quads with zeros, whose level is taken off the sum of squares.
typedef int8_t Quad __attribute__((vector_size(4 * kLanes)));

// Integers are compared as signed bytes, 128 less. Where no two borders share 16 integers, x / 16 finds the one border that x may lie
// beyond.
template <int kBits>
struct Lloyd {
  static constexpr int kCount = 1 << (kBits - 1);  // of levels above zero
  static constexpr bool kOneBorderInSixteen = kBits < 5;
  uint8_t levels[16] = {};
  int8_t borders[kCount - 1] = {};  // the largest integer below each
  uint8_t first[16] = {};           // the level of 16 i
  uint8_t next[16] = {};            // and the border after which it is the next one
  float stretches[INT4KV_FITS] = {};

  constexpr Lloyd(const int (&upper)[kCount], const float (&fits)[INT4KV_FITS]) {
    for (int i = 0; i < kCount; ++i) levels[i] = upper[i];
    for (int i = 0; i + 1 < kCount; ++i) borders[i] = upper[i] + upper[i + 1] - 1 - 128;
    for (int i = 0; i < 16; ++i) {
      while (first[i] < kCount - 1 && 16 * i - 128 > borders[first[i]]) ++first[i];
      next[i] = first[i] < kCount - 1 ? borders[first[i]] : 127;
    }
    for (int i = 0; i < INT4KV_FITS; ++i) stretches[i] = 1.0f / fits[i];
  }
};

template <int kBits> constexpr Lloyd<kBits> kLloyd = {};
template <> constexpr Lloyd<3> kLloyd<3> = {INT4KV_LLOYD_3, INT4KV_FITS_3};
template <> constexpr Lloyd<4> kLloyd<4> = {INT4KV_LLOYD_4, INT4KV_FITS_4};
template <> constexpr Lloyd<5> kLloyd<5> = {INT4KV_LLOYD_5, INT4KV_FITS_5};

constexpr int kQuadSize = 4 * kLanes;
constexpr int kStep = kQuadSize > INT4KV_UNIT ? kQuadSize : INT4KV_UNIT;

inline Ints quad_of(const float* y, float stretch) {
  Ints x[4];
  for (int k = 0; k < 4; ++k) x[k] = __builtin_convertvector(load(y + k * kLanes) * stretch, Ints);
  return gather_bytes(x[0], x[1], x[2], x[3]);
}

// Which level above zero is nearest.
template <int kBits>
inline Ints nearest_levels(Ints quad) {
  const Quad x = (Quad)(quad ^ static_cast<int32_t>(0x80808080));
  if constexpr (kQuickLookup && Lloyd<kBits>::kOneBorderInSixteen) {
    const Ints sixteenth = quad >> 4 & 0x0f0f0f0f;
    const Quad next = (Quad)lookup(sixteenth, load_table(kLloyd<kBits>.next));
    return (Ints)((Quad)lookup(sixteenth, load_table(kLloyd<kBits>.first)) - (Quad)(x > next));
  }
  Quad index = {};
#pragma GCC unroll 16
  for (const int8_t border : kLloyd<kBits>.borders) index -= (Quad)(x > border);
  return (Ints)index;
}

struct Fit {
  float sum, gain;
};

// One clip: p = lane_sum(y * level), the gain p * p / sum(level * level), and the levels taken, in quads.
template <int kBits>
inline __attribute__((always_inline)) Fit fit_levels(const float* y, int64_t n, int64_t filled, float stretch, uint8_t* indices) {
  const Table levels = load_table(kLloyd<kBits>.levels);
  LaneSum products;
  Ints squares = {};
  for (int64_t c = 0; c < filled; c += kStep) {
#pragma GCC unroll 2
    for (int q = 0; q < kStep; q += kQuadSize) {
      const Ints index = nearest_levels<kBits>(quad_of(y + c + q, 2.0f * stretch)), level = lookup(index, levels);
      std::memcpy(indices + c + q, &index, sizeof index);
      squares = dot4(squares, level, level);
      Ints each[4];
      scatter_bytes(level, each);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        products.lanes[(q / kLanes + k) % LaneSum::kVectors] += load(y + c + q + k * kLanes) * to_floats(each[k]);
      }
    }
  }
  const int32_t least = kLloyd<kBits>.levels[0], exact = sum(squares) - static_cast<int32_t>(filled - n) * least * least;
  const float total = products.total();
  return {total, total * total / static_cast<float>(exact)};
}

// Of levels above zero and the signs of x: the codes, a byte each in the order of the channels.
template <int kBits>
inline void sign_codes(const float* x, int64_t n, const uint8_t* indices, uint8_t* codes) {
  for (int64_t c = 0; c < n; c += kQuadSize) {
    Ints index, below[4];
    std::memcpy(&index, indices + c, sizeof index);
    for (int k = 0; k < 4; ++k) below[k] = (load(x + c + k * kLanes) < 0.0f) & 255;
    const Quad code = (Quad)(index ^ gather_bytes(below[0], below[1], below[2], below[3])) + static_cast<int8_t>(Lloyd<kBits>::kCount);
    store_gathered(codes + c, (Ints)code);
  }
}

// Writes whole steps of codes: those beyond n are of zeros.
template <int kBits>
GroupScale encode_lloyd(const float* x, int64_t n, float largest, uint8_t* codes) {
  alignas(64) float ends_with_zeros[INT4KV_MAX_HEAD_DIM], y[INT4KV_MAX_HEAD_DIM];
  alignas(64) uint8_t indices[INT4KV_FITS][INT4KV_MAX_HEAD_DIM];
  const int64_t filled = (n + kStep - 1) / kStep * kStep;
  if (n < filled) {
    std::memset(ends_with_zeros, 0, filled * sizeof(float));
    std::memcpy(ends_with_zeros, x, n * sizeof(float));
    x = ends_with_zeros;
  }
  const float unit = largest / INT4KV_LLOYD_LARGEST, inverse = inverse_of(unit, largest);
  LaneSum norm;
  for (int64_t c = 0; c < filled; c += INT4KV_UNIT) {
    for (int i = 0; i < LaneSum::kVectors; ++i) {
      const Floats magnitude = from_bits(bits_of(load(x + c + i * kLanes) * inverse) & INT32_MAX);
      norm.lanes[i] += magnitude * magnitude;
      store(y + c + i * kLanes, magnitude);
    }
  }
  Fit fits[INT4KV_FITS];
  for (int i = 0; i < INT4KV_FITS; ++i) fits[i] = fit_levels<kBits>(y, n, filled, kLloyd<kBits>.stretches[i], indices[i]);
  int best = 0;
  for (int i = 1; i < INT4KV_FITS; ++i) best = fits[i].gain > fits[best].gain ? i : best;
  sign_codes<kBits>(x, filled, indices[best], codes);
  return {inverse == 0.0f ? 0.0f : norm.total() / fits[best].sum * unit, 0.0f};
}
