// Codes of the Lloyd-Max levels: ../../format.h. Everything is done on |y| = |x| / unit, since a level has its value's sign.
//
// Each group is read twice: for the sums that say which clip is best (fit_*), then for the codes of that clip (write_codes).
//
// fit_two, 3 and 4 bits: the largest clip is less than a border between levels away from the smallest, so that round(|y| / kWidth) leaves
// two neighbouring levels, whichever clip is tried (TwoLevels). One comparison for each clip decides between them.
//
// fit_each, 5 bits, and write_codes: levels are integers, so the borders between them are halves of integers and floor(2 |y| / f) alone
// decides: a byte, as no border lies beyond 127.5. A quad is four vectors of kLanes such integers as one vector of bytes (gather_bytes):
// borders are compared and levels looked up for 4 kLanes channels at once.
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

// The two levels that |y| may have, by round(|y| / kWidth); the same one twice where no border is near.
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
      const int lowest = level_at((i - 0.501f) * kWidth, by.stretches[INT4KV_FITS - 1]);
      const int highest = level_at((i + 0.501f) * kWidth, by.stretches[0]);
      if (highest - lowest > 1) throw "a third level is near";
      above[i] = by.levels[highest];
      below[i] = by.levels[lowest];
    }
  }
};
template <int kBits> constexpr TwoLevels<kBits> kTwoLevels = {kLloyd<kBits>};

// Of up to kLanes groups: group g's vectors whose lanes fold into its sums. totals: clip by clip, p = lane_sum(|y| * level) first and then
// s = sum(level * level), exact as an integer below 2^24.
struct Sums {
  Floats norm[kLanes], totals[2 * INT4KV_FITS][kLanes];
};

// y = x * inverse, and its norm. indices: round(|y| / width) in the lowest byte of each lane and, as look-ups want it, 128 or more in the
// bytes above: numbers from -(2^24 + 2^16) down have a last bit worth 2, and 0xcb8080 in front of the last byte.
inline Floats scale_group(const float* x, int64_t n, float inverse, float width, float* y, int32_t* indices) {
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
  return LaneSum::folded(norm.lanes);
}

// One vector of the 32 lanes after the other, each through the whole group.
template <int kBits>
inline void fit_two(const float* y, const int32_t* indices, int64_t n, int64_t g, Sums& sums) {
  const Table above = load_table(kTwoLevels<kBits>.above), below = load_table(kTwoLevels<kBits>.below);
  Floats lanes[INT4KV_FITS][LaneSum::kVectors];
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
    sums.totals[f][g] = LaneSum::folded(lanes[f]);
    sums.totals[INT4KV_FITS + f][g] = s[f];
  }
}

template <int kBits>
inline void fit_each(const float* y, int64_t n, int64_t g, Sums& sums) {
  const Table levels = load_table(kLloyd<kBits>.levels);
  const int32_t beyond = static_cast<int32_t>((kStep - n % kStep) % kStep) * kLloyd<kBits>.levels[0] * kLloyd<kBits>.levels[0];
  for (int f = 0; f < INT4KV_FITS; ++f) {
    LaneSum products;
    Ints squares = {-beyond};
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
    }
    sums.totals[f][g] = LaneSum::folded(products.lanes);
    sums.totals[INT4KV_FITS + f][g] = to_floats(squares);
  }
}

// Lane g: the sum of group g. One group alone, as a decode step has it, is not worth the work of many.
constexpr int kFew = kRowsTogether < kLanes ? kRowsTogether : kLanes;
inline Floats sums_of(const Floats* x, int64_t groups) {
  const auto add = [](Floats a, Floats b) { return a + b; };
  return groups == 1 ? splat(sum_of_lanes(*x)) : groups <= kFew ? fold_each<kFew>(x, add) : fold_each<kLanes>(x, add);
}

// Of each group's best clip: p, and 1 / f. Without branches, which nothing would predict.
struct Fit {
  Floats p, stretch;
};

template <int kBits>
inline Fit best_fit(const Sums& sums, int64_t groups) {
  const auto& stretches = kLloyd<kBits>.stretches;
  Fit best = {sums_of(sums.totals[0], groups), splat(stretches[0])};
  Floats most = best.p * best.p / sums_of(sums.totals[INT4KV_FITS], groups);
  for (int f = 1; f < INT4KV_FITS; ++f) {
    const Floats p = sums_of(sums.totals[f], groups), gain = p * p / sums_of(sums.totals[INT4KV_FITS + f], groups);
    const Ints better = gain > most;
    best.p = better ? p : best.p;
    best.stretch = better ? splat(stretches[f]) : best.stretch;
    most = better ? gain : most;
  }
  return best;
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

// kLanes groups, or what is left of them, side by side: what there is one of for each is lane g of a vector. Pass after pass, so that the
// sums of one group, which take many cycles to come together, do so while the next is read.
template <int kBits>
inline void encode_beside(const float* x, int64_t groups, int64_t n, uint8_t* codes, GroupScale* found) {
  alignas(64) float y[kRowsTogether * INT4KV_MAX_HEAD_DIM], inverse[kLanes], stretch[kLanes], scale[kLanes];
  alignas(64) int32_t indices[INT4KV_MAX_HEAD_DIM];
  float largest[kLanes] = {};
  Sums sums;
  if (groups > 1 && groups != kFew && groups != kLanes) sums = {};
  for (int64_t g = 0; g < groups; ++g) largest[g] = largest_of(x + g * n, n);
  const Floats most = load(largest), unit = most / INT4KV_LLOYD_LARGEST;
  const Ints tiny = most < INT4KV_TINY;
  store(inverse, tiny ? Floats{} : 1.0f / unit);
  for (int64_t g = 0; g < groups; ++g) {
    sums.norm[g] = scale_group(x + g * n, n, inverse[g], TwoLevels<kBits>::kWidth, y + g * n, indices);
    if constexpr (kBits < 5) fit_two<kBits>(y + g * n, indices, n, g, sums);
    else fit_each<kBits>(y + g * n, n, g, sums);
  }
  const Fit best = best_fit<kBits>(sums, groups);
  store(stretch, best.stretch);
  store(scale, tiny ? Floats{} : sums_of(sums.norm, groups) / best.p * unit);
  for (int64_t g = 0; g < groups; ++g) {
    found[g] = {scale[g], 0.0f};
    if (largest[g] < INFINITY) write_codes<kBits>(y + g * n, n, stretch[g], codes + g * n);
    else found[g] = encode_not_finite(n, kBits, codes + g * n);
  }
}

template <int kBits>
inline void encode_lloyd(const float* x, int64_t groups, int64_t n, uint8_t* codes, GroupScale* found) {
  for (int64_t g = 0; g < groups; g += kLanes) {
    encode_beside<kBits>(x + g * n, groups - g < kLanes ? groups - g : kLanes, n, codes + g * n, found + g);
  }
}
