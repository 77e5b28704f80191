// Rotations of one row, in the format's order: butterflies 1, 2, 4, ... channels apart; a matrix's products channel after channel.
//
// Butterflies below kLanes apart exchange lanes, wider ones pair whole vectors. The first kSums vectors of a block go through all of their
// butterflies in registers; what is left of a larger block is a second pass over vectors kSums apart.

// In lanes i and i ^ kApart, a below and b above: a + b below, a - b above. A product with 1 or -1 is exact, fused or not.
template <int kApart>
inline Floats butterfly(Floats x) {
  return fma(x, to_floats(1 + 2 * ((lane_numbers() & kApart) != 0)), exchange<kApart>(x));
}

template <int kApart, int kCount>
inline void butterflies_within(Floats* x, int64_t block) {
  if (block <= kApart) return;
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) x[i] = butterfly<kApart>(x[i]);
  if constexpr (2 * kApart < kLanes) butterflies_within<2 * kApart, kCount>(x, block);
}

template <int kCount>
inline void butterflies_between(Floats* x) {
#pragma GCC unroll 4
  for (int half = 1; half < kCount; half *= 2) {
#pragma GCC unroll 16
    for (int pair = 0; pair < kCount / 2; ++pair) {
      const int i = pair / half * 2 * half + pair % half;
      const Floats a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

// kCount vectors side by side, a whole block or the start of one.
template <int kCount, typename From, typename After>
inline void first_butterflies(float* row, int64_t c, From from, After after) {
  Floats y[kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) y[i] = from(c + i * kLanes);
  butterflies_within<1, kCount>(y, kLanes);
  butterflies_between<kCount>(y);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) store(row + c + i * kLanes, after(y[i], c + i * kLanes));
}

// kCount vectors kSums apart, for each of kSums.
template <int kCount, typename After>
inline void last_butterflies(float* row, int64_t block, After after) {
  for (int64_t c = block; c < block + kSums * kLanes; c += kLanes) {
    Floats y[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) y[i] = load(row + c + i * kSums * kLanes);
    butterflies_between<kCount>(y);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) store(row + c + i * kSums * kLanes, after(y[i], c + i * kSums * kLanes));
  }
}

template <int kCount, typename From, typename After>
inline __attribute__((always_inline)) void butterflies(float* row, int64_t head_dim, From from, After after) {
  if constexpr (kCount <= kSums) {
    for (int64_t c = 0; c < head_dim; c += kCount * kLanes) first_butterflies<kCount>(row, c, from, after);
  } else {
    for (int64_t c = 0; c < head_dim; c += kSums * kLanes) first_butterflies<kSums>(row, c, from, [](Floats x, int64_t) { return x; });
    for (int64_t c = 0; c < head_dim; c += kCount * kLanes) last_butterflies<kCount / kSums>(row, c, after);
  }
}

// row = after(H from), in blocks; from gives the vector that starts at a channel, after takes one and its first channel.
template <typename From, typename After>
inline __attribute__((always_inline)) void hadamard(float* row, int64_t head_dim, int64_t block, From from, After after) {
  switch (block / kLanes) {
    case 1: return butterflies<1>(row, head_dim, from, after);
    case 2: return butterflies<2>(row, head_dim, from, after);
    case 4: return butterflies<4>(row, head_dim, from, after);
    case 8: return butterflies<8>(row, head_dim, from, after);
    case 16: return butterflies<16>(row, head_dim, from, after);
    case 32: return butterflies<32>(row, head_dim, from, after);
    case 64: return butterflies<64>(row, head_dim, from, after);
  }
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    Floats y = from(c);
    butterflies_within<1, 1>(&y, block);
    store(row + c, after(y, c));
  }
}

inline float norm_of(int64_t block) {
  return 1.0f / std::sqrt(static_cast<float>(block));
}

inline void rotate(float* row, int64_t head_dim, int64_t block, const float* signs) {
  const auto with_signs = [=](int64_t c) { return load(row + c) * load(signs + c); };
  hadamard(row, head_dim, block, with_signs, [norm = norm_of(block)](Floats x, int64_t) { return x * norm; });
}

// Rows on their way from numbers to a rotated row, in registers up to the first butterflies.
template <typename T>
void load_rotated_of(
    const char* from, int64_t apart, int64_t stride, int64_t count, int64_t head_dim, const float* centre, int64_t block, const float* signs,
    float* rows) {
  static constexpr float kNoCentre[INT4KV_MAX_HEAD_DIM] = {};
  const float* minus = centre ? centre : kNoCentre;
  const auto times_norm = [norm = norm_of(block)](Floats x, int64_t) { return x * norm; };
  T gathered[INT4KV_MAX_HEAD_DIM];
  for (int64_t r = 0; r < count; ++r, from += apart, rows += head_dim) {
    const T* x = gather_numbers(from, stride, head_dim, gathered);
    hadamard(rows, head_dim, block, [=](int64_t c) { return (load_numbers(x + c) - load(minus + c)) * load(signs + c); }, times_norm);
  }
}

inline void load_rotated(
    const char* from, int64_t apart, int64_t stride, Number type, int64_t count, int64_t head_dim, const float* centre, int64_t block,
    const float* signs, float* rows) {
  const auto load_all = type == Number::kFloat32   ? load_rotated_of<float>
                        : type == Number::kFloat16 ? load_rotated_of<Half>
                                                   : load_rotated_of<Bfloat>;
  load_all(from, apart, stride, count, head_dim, centre, block, signs, rows);
}

inline void unrotate(float* row, int64_t head_dim, int64_t block, const float* signs) {
  const auto with_signs = [signs, norm = norm_of(block)](Floats x, int64_t c) { return x * norm * load(signs + c); };
  hadamard(row, head_dim, block, [row](int64_t c) { return load(row + c); }, with_signs);
}

// kLanes vectors become their columns: squares of kApart lanes swap across the diagonal.
template <int kApart = kLanes / 2>
inline void transpose_lanes(Floats* x) {
#pragma GCC unroll 8
  for (int pair = 0; pair < kLanes / 2; ++pair) {
    const int i = pair / kApart * 2 * kApart + pair % kApart;
    const Floats a = x[i], b = x[i + kApart];
    x[i] = interleave_lanes<kApart, false>(a, b);
    x[i + kApart] = interleave_lanes<kApart, true>(a, b);
  }
  if constexpr (kApart > 1) transpose_lanes<kApart / 2>(x);
}

// y[c] += sum over the kLanes channels j of x: matrix[c][j] * x[j], for kLanes rows c from `rows` on.
inline Floats add_products(Floats y, const float* rows, int64_t head_dim, const float* x) {
  Floats column[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) column[i] = load(rows + i * head_dim);
  transpose_lanes(column);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) y = y + column[i] * x[i];
  return y;
}

inline void multiply(float* row, int64_t head_dim, const float* matrix) {
  float y[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t j = 0; j < head_dim; j += kLanes) {
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      store(y + c, add_products(load(y + c), matrix + c * head_dim + j, head_dim, row + j));
    }
  }
  std::memcpy(row, y, head_dim * sizeof(float));
}

inline void multiply_transposed(float* row, int64_t head_dim, const float* matrix) {
  float y[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t j = 0; j < head_dim; ++j) {
    for (int64_t c = 0; c < head_dim; c += kLanes) store(y + c, load(y + c) + load(matrix + j * head_dim + c) * row[j]);
  }
  std::memcpy(row, y, head_dim * sizeof(float));
}
