// o = o * rescale + sum over tokens of weight * value.
//
// Of codes: lanes are channels, and a lane's four bytes are four tokens: its even and its odd ones meet a pair of weights each. The sums of
// a tile are exact integers that start at -128 times the sum of the weights, as biased levels are 128 too large; they join o once a tile.

// Levels of kLanes channels of four tokens: those of byte `at` .. of a row, half 0 the low nibbles, half 1 the high ones.
template <bool nibbles>
inline Ints levels_of_bytes(const int32_t* codes, const Table& table, int at, int half) {
  if (!nibbles) return load(codes + at / 16 * 32 + at % 16 + 16 * half);
  return lookup(load(codes + at) >> (4 * half) & 0x0f0f0f0f, table);
}

// kLanes channels (of each of `halves` halves of a unit) at a time, so that all rows' sums stay in registers.
template <int rows, int halves, bool nibbles>
inline void add_bytes(
    const Tile& tile, const Table& table, int g, int at, int half, const Weights& weights, Ahead& ahead, QueryBlock& block) {
  const int bytes = nibbles ? tile.head_dim / 2 : tile.head_dim;
  Ints sums[halves][rows];
  for (int h = 0; h < halves; ++h) {
    for (int r = 0; r < rows; ++r) sums[h][r] = splat(-kBias * weights.sums[g][r]);
  }
  fetch(ahead, kTile / 4);
  const int32_t *codes = tile.v.codes, *pairs = weights.pairs[g][0];
  constexpr int kPairs = kTile / 2 * kMaxCopies;  // from row to row
  for (int t = 0; t < tile.count; t += 4, codes += bytes, pairs += 2 * kCopies) {
    for (int h = 0; h < halves; ++h) {
      const Ints levels = levels_of_bytes<nibbles>(codes, table, at, half + h);
      const Ints even = even_bytes(levels), odd = odd_bytes(levels);
      for (int r = 0; r < rows; ++r) sums[h][r] = dot2(sums[h][r], even, load_copies(pairs + r * kPairs));
      for (int r = 0; r < rows; ++r) sums[h][r] = dot2(sums[h][r], odd, load_copies(pairs + r * kPairs + kCopies));
    }
  }
  for (int h = 0; h < halves; ++h) {
    for (int r = 0; r < rows; ++r) {
      float* o = block.o[r] + at / 16 * INT4KV_UNIT + (half + h) * 16 + at % 16;
      store(o, fma(to_floats(sums[h][r]), splat(weights.scales[g][r]), load(o) * weights.rescale[r]));
    }
  }
}

template <int rows, bool nibbles>
inline void accumulate_codes(const Tile& tile, const Weights& weights, Ahead& ahead, QueryBlock& block) {
  constexpr int halves = kSums >= 2 * rows ? 2 : 1;
  const Table table = load_table(tile.v.levels->biased);
  const int group_bytes = tile.head_dim / 2 / tile.v.groups;
  for (int g = 0; g < tile.v.groups; ++g) {
    for (int at = g * group_bytes; at < (g + 1) * group_bytes; at += kLanes) {
      for (int half = 0; half < 2; half += halves) add_bytes<rows, halves, nibbles>(tile, table, g, at, half, weights, ahead, block);
    }
  }
}

// Of plain rows: `tokens` lists those that all `rows` rows see. Two vectors of channels share a weight's broadcast.
template <int rows, typename T>
inline void accumulate_rows(const Tile& tile, const Weights& weights, int first, const int* tokens, int count, QueryBlock& block) {
  for (int c = 0; c < tile.head_dim; c += 2 * kLanes) {
    Floats low[rows], high[rows];
    for (int r = 0; r < rows; ++r) {
      low[r] = load(block.o[first + r] + c) * weights.rescale[first + r];
      high[r] = load(block.o[first + r] + c + kLanes) * weights.rescale[first + r];
    }
    for (int i = 0; i < count; ++i) {
      const T* value = reinterpret_cast<const T*>(tile.v.rows[tokens[i]]) + c;
      const Floats value_low = load_numbers(value), value_high = load_numbers(value + kLanes);
      for (int r = 0; r < rows; ++r) {
        const Floats weight = splat(weights.p[first + r][tokens[i]]);
        low[r] = fma(weight, value_low, low[r]);
        high[r] = fma(weight, value_high, high[r]);
      }
    }
    for (int r = 0; r < rows; ++r) {
      store(block.o[first + r] + c, low[r]);
      store(block.o[first + r] + c + kLanes, high[r]);
    }
  }
}

inline int list_seen(uint64_t seen, int count, int* tokens) {
  int n = 0;
  for (int t = 0; t < count; ++t) {
    tokens[n] = t;
    n += static_cast<int>(seen >> t & 1);
  }
  return n;
}

// All rows together where they see the same tokens; a token that a row does not see is not touched for it.
template <int rows, typename T>
inline void accumulate_rows(const Tile& tile, const Weights& weights, QueryBlock& block) {
  int tokens[kTile + 1];
  bool same = true;
  for (int r = 1; r < rows; ++r) same = same && block.seen[r] == block.seen[0];
  if (same) return accumulate_rows<rows, T>(tile, weights, 0, tokens, list_seen(block.seen[0], tile.count, tokens), block);
  for (int r = 0; r < rows; ++r) accumulate_rows<1, T>(tile, weights, r, tokens, list_seen(block.seen[r], tile.count, tokens), block);
}

template <int rows>
inline void accumulate_plain(const Tile& tile, const Weights& weights, Ahead&, QueryBlock& block) {
  if (tile.v.type == Number::kFloat32) return accumulate_rows<rows, float>(tile, weights, block);
  if (tile.v.type == Number::kFloat16) return accumulate_rows<rows, Half>(tile, weights, block);
  accumulate_rows<rows, Bfloat>(tile, weights, block);
}
