// Codes of the Lloyd-Max levels: ../../format.h. Everything is done on |y| = |x| / unit, since a level has its value's sign.
//
// The four clips stretch |y| by 1.02 to 1.56, less than neighbouring borders between levels of 3 or 4 bits are apart. So two levels are left
// for each channel whichever clip is tried (TwoLevels), and one comparison a clip decides: fit_two. At 5 bits levels are looked up
// for each clip. fit_* only sum up; the codes of the clip with the largest gain are made afterwards, from bytes.
//
// Levels are integers, so the borders between them are halves of integers and floor(2 |y| / f) alone decides: a byte, as no border lies
// beyond 127.5. A quad is four vectors of kLanes such integers as one vector of bytes (gather_bytes): borders are compared and levels
// looked up for 4 kLanes channels at once.
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

inline Floats magnitude_of(Floats x) {
  return from_bits(bits_of(x) & INT32_MAX);
}

// A quad may reach half beyond a group of n channels.
inline Floats load_within(const float* y, int64_t c, int64_t n) {
  return kQuadSize <= INT4KV_UNIT || c < n ? load(y + c) : Floats{};
}

inline Ints quad_of(const float* y, int64_t c, int64_t n, float stretch) {
  Ints x[4];
  for (int k = 0; k < 4; ++k) x[k] = __builtin_convertvector(magnitude_of(load_within(y, c + k * kLanes, n)) * stretch, Ints);
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

// The two levels that |y| may have, by round(|y| / kWidth).
template <int kBits>
struct TwoLevels {
  static constexpr float kWidth = 8.25f;
  uint8_t above[16] = {}, below[16] = {};

  constexpr TwoLevels(const Lloyd<kBits>& by) {
    const auto level_at = [&by](float y, float stretch) {
      int i = 0;
      while (i + 1 < by.kCount && 2.0f * y * stretch >= by.levels[i] + by.levels[i + 1]) ++i;
      return i;
    };
    for (int i = 0; i < 16; ++i) {
      const int lowest = level_at((i - 0.501f) * kWidth, by.stretches[INT4KV_FITS - 1]), highest = level_at((i + 0.501f) * kWidth, by.stretches[0]);
      if (highest - lowest > 1) throw "a third level is near";
      above[i] = by.levels[highest];
      below[i] = by.levels[lowest];
    }
  }
};
template <int kBits> constexpr TwoLevels<kBits> kTwoLevels = {kLloyd<kBits>};

// Of a group: the sums of y * y and, for each clip, of |y| * level and level * level. The last are exact: integers below 2^24.
struct Sums {
  float totals[2 * INT4KV_FITS > kLanes ? 2 * INT4KV_FITS : kLanes];
  float norm;
};

// y = x * inverse; indices: round(|y| / kWidth) in the lowest byte of each lane, and bytes above it that look up zero.
inline float scale_group(const float* x, int64_t n, float inverse, float width, float* y, int32_t* indices) {
  LaneSum norm;
  for (int64_t c = 0; c < n; c += INT4KV_UNIT) {
#pragma GCC unroll 8
    for (int i = 0; i < LaneSum::kVectors; ++i) {
      const Floats scaled = load(x + c + i * kLanes) * inverse;
      norm.lanes[i] += scaled * scaled;
      store(y + c + i * kLanes, scaled);
      store(indices + c + i * kLanes, bits_of(fma(magnitude_of(scaled), splat(-2.0f / width), splat(-(0x1p24f + 0x1p16f)))));
    }
  }
  return norm.total();
}

template <int kBits>
inline void fit_two(const float* y, const int32_t* indices, int64_t n, Sums& sums) {
  const Table above = load_table(kTwoLevels<kBits>.above), below = load_table(kTwoLevels<kBits>.below);
  Floats lanes[INT4KV_FITS][LaneSum::kVectors], found[2 * INT4KV_FITS];
  Floats s[INT4KV_FITS] = {};
  for (int i = 0; i < LaneSum::kVectors; ++i) {
    Floats p[INT4KV_FITS] = {};
    int64_t c = i * kLanes;
    do {
      const Floats magnitude = magnitude_of(load(y + c));
      const Ints index = load(indices + c);
      const Floats high = lookup_floats(index, above), low = lookup_floats(index, below), border = high + low;
#pragma GCC unroll 4
      for (int f = 0; f < INT4KV_FITS; ++f) {
        const Floats level = magnitude * (2.0f * kLloyd<kBits>.stretches[f]) < border ? low : high;
        p[f] += magnitude * level;
        s[f] = fma(level, level, s[f]);
      }
      c += INT4KV_UNIT;
    } while (c < n);
    for (int f = 0; f < INT4KV_FITS; ++f) lanes[f][i] = p[f];
  }
  for (int f = 0; f < INT4KV_FITS; ++f) {
    found[f] = LaneSum::folded(lanes[f]);
    found[INT4KV_FITS + f] = s[f];
  }
  for (int i = 0; i < 2 * INT4KV_FITS; i += kLanes) store(sums.totals + i, fold_each<2 * INT4KV_FITS>(found, i));
}

template <int kBits>
inline void fit_each(const float* y, int64_t n, Sums& sums) {
  const Table levels = load_table(kLloyd<kBits>.levels);
  for (int f = 0; f < INT4KV_FITS; ++f) {
    LaneSum products;
    Ints squares = {};
    int32_t beyond = 0;
    for (int64_t c = 0; c < n; c += kStep) {
#pragma GCC unroll 2
      for (int q = 0; q < kStep; q += kQuadSize) {
        const Ints level = lookup(nearest_levels<kBits>(quad_of(y, c + q, n, 2.0f * kLloyd<kBits>.stretches[f])), levels);
        squares = dot4(squares, level, level);
        Ints each[4];
        scatter_bytes(level, each);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          const Floats magnitude = magnitude_of(load_within(y, c + q + k * kLanes, n));
          products.lanes[(q / kLanes + k) % LaneSum::kVectors] += magnitude * to_floats(each[k]);
        }
      }
      if (c + kStep > n) beyond = static_cast<int32_t>(c + kStep - n);
    }
    sums.totals[f] = products.total();
    sums.totals[INT4KV_FITS + f] = static_cast<float>(sum(squares) - beyond * kLloyd<kBits>.levels[0] * kLloyd<kBits>.levels[0]);
  }
}

// Without branches, which nothing would predict.
inline int best_fit(const Sums& sums) {
  float gains[INT4KV_FITS];
  for (int f = 0; f < INT4KV_FITS; ++f) gains[f] = sums.totals[f] * sums.totals[f] / sums.totals[INT4KV_FITS + f];
  const int low = gains[1] > gains[0], high = 2 + (gains[3] > gains[2]);
  return low + (std::fmax(gains[2], gains[3]) > std::fmax(gains[0], gains[1])) * (high - low);
}

// The codes of y at one clip, a byte each in the order of the channels. Whole quads are written.
template <int kBits>
inline void write_codes(const float* y, int64_t n, float stretch, uint8_t* codes) {
  for (int64_t c = 0; c < n; c += kQuadSize) {
    const Ints index = nearest_levels<kBits>(quad_of(y, c, n, 2.0f * stretch));
    Ints negative[4];
    for (int k = 0; k < 4; ++k) negative[k] = (load_within(y, c + k * kLanes, n) < 0.0f) & 255;
    const Ints flips = gather_bytes(negative[0], negative[1], negative[2], negative[3]);
    store_gathered(codes + c, (Ints)((Quad)(index ^ flips) + static_cast<int8_t>(Lloyd<kBits>::kCount)));
  }
}

// Group by group in two passes, so that the sums of one, which take many cycles to come together, do so while the next is read.
template <int kBits>
inline void encode_lloyd(const float* x, int64_t groups, int64_t n, const float* largest, uint8_t* codes, GroupScale* found) {
  alignas(64) float y[kRowsTogether * INT4KV_MAX_HEAD_DIM];
  alignas(64) int32_t indices[INT4KV_MAX_HEAD_DIM];
  Sums sums[kMostGroups];
  for (int64_t g = 0; g < groups; ++g) {
    const float unit = largest[g] / INT4KV_LLOYD_LARGEST;
    sums[g].norm = scale_group(x + g * n, n, inverse_of(unit, largest[g]), TwoLevels<kBits>::kWidth, y + g * n, indices);
    if constexpr (kBits < 5) fit_two<kBits>(y + g * n, indices, n, sums[g]);
    else fit_each<kBits>(y + g * n, n, sums[g]);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int best = best_fit(sums[g]);
    const float scale = sums[g].norm / sums[g].totals[best] * (largest[g] / INT4KV_LLOYD_LARGEST);
    found[g] = {largest[g] < INT4KV_TINY ? 0.0f : scale, 0.0f};
    write_codes<kBits>(y + g * n, n, kLloyd<kBits>.stretches[best], codes + g * n);
  }
}
