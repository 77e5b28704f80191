// scores[row][token] = q . k.
//
// Of codes: int16 x int16 -> int32, exact: q of a row is scale * integers of 16 bits, a level is a byte. Two channels a lane and
// instruction, kLanes tokens at a time; `word` of a row is four bytes, that is channels c .. c + 3 (low nibbles) and c + 16 .. c + 19:
//
//   levels of a lane       3   2   1   0            pairs with q       0 low even    (c, c + 2)          1 low odd    (c + 1, c + 3)
//                       even_bytes -> 2, 0                             2 high even   (c + 16, c + 18)    3 high odd   (c + 17, c + 19)
//                        odd_bytes -> 3, 1
//
// Biased levels are 128 too large: the sums start at -128 times q's.

// The pairs of word `word`: 4 p .. of each row, as drawn above.
inline void pair_queries(const int16_t* q, int row, int rows, int head_dim, int32_t* pairs) {
  for (int word = 0; word < head_dim / 8; ++word) {
    const int first = word / 4 * INT4KV_UNIT + word % 4 * 4;
    for (int p = 0; p < 4; ++p) {
      const int c = first + (p & 1) + (p >> 1) * 16;
      const int32_t pair = (q[c] & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(q[c + 2]) << 16);
      store_copies(pairs + ((4 * word + p) * rows + row) * kCopies, pair);
    }
  }
}

// q as 16-bit integers: the error is 2^-16 of a row's largest number.
inline void encode_queries(QueryBlock& block) {
  for (int r = 0; r < block.rows; ++r) {
    Floats top = {}, poison = {};
    for (int c = 0; c < block.head_dim; c += kLanes) {
      const Floats x = load(block.q[r] + c);
      top = maximum(from_bits(bits_of(x) & INT32_MAX), top);
      poison += x * 0.0f;
    }
    const float most = largest(top), inverse = most > 1e-30f && most < 1e30f ? 32767.0f / most : 0.0f;
    block.q_scales[r] = most / 32767.0f + sum(poison);
    alignas(64) int16_t integers[INT4KV_MAX_HEAD_DIM];
    for (int g = 0; g < kMaxGroups; ++g) block.q_sums[g][r] = 0;
    for (int c = 0; c < block.head_dim; c += kLanes) {
      const Ints x = to_ints(load(block.q[r] + c) * inverse);
      for (int i = 0; i < kLanes; ++i) integers[c + i] = static_cast<int16_t>(x[i]);
      block.q_sums[c / INT4KV_UNIT][r] += sum(x);
    }
    pair_queries(integers, r, block.rows, block.head_dim, block.pairs);
  }
}

inline int32_t sum_of_group(const QueryBlock& block, int group, int groups, int row) {
  const int units = block.head_dim / INT4KV_UNIT / groups;
  int32_t total = 0;
  for (int u = group * units; u < (group + 1) * units; ++u) total += block.q_sums[u][row];
  return total;
}

// The levels of word `word` of kLanes tokens: half 0 those of the low nibbles, half 1 of the high ones.
template <bool nibbles>
inline Ints levels_of_word(const TileSide& k, const Table& table, int word, int token, int half) {
  if (!nibbles) return load(k.codes + (word / 4 * 8 + word % 4 + 4 * half) * kTile + token);
  return lookup(load(k.codes + word * kTile + token) >> (4 * half) & 0x0f0f0f0f, table);
}

// Sums of the words first .. last for `rows` rows and `vectors` vectors of tokens. For every vector of codes a line of the next tile is
// asked for.
template <int rows, int vectors, bool nibbles>
inline void dot_words(
    const TileSide& k, const Table& table, const int32_t* pairs, int first, int last, int token, Ahead& ahead,
    Ints (&sums)[vectors][rows]) {
  for (int word = first; word < last; ++word) {
    fetch(ahead, vectors);
    for (int half = 0; half < 2; ++half) {
      const int32_t *even = pairs + (4 * word + 2 * half) * rows * kCopies, *odd = even + rows * kCopies;
      for (int v = 0; v < vectors; ++v) {
        const Ints levels = levels_of_word<nibbles>(k, table, word, token + v * kLanes, half);
        for (int r = 0; r < rows; ++r) sums[v][r] = dot2(sums[v][r], even_bytes(levels), load_copies(even + r * kCopies));
        for (int r = 0; r < rows; ++r) sums[v][r] = dot2(sums[v][r], odd_bytes(levels), load_copies(odd + r * kCopies));
      }
    }
  }
}

// Vectors of tokens at a time: as many as registers hold the sums of.
constexpr int token_vectors(int rows) {
  return kSums >= 4 * rows ? 4 : kSums >= 2 * rows ? 2 : 1;
}

template <int rows, bool nibbles>
inline void score_codes(const Tile& tile, const QueryBlock& block, Ahead& ahead, float (*scores)[kTile]) {
  constexpr int vectors = token_vectors(rows);
  const TileSide& k = tile.k;
  const Table table = load_table(k.levels->biased);
  const int words = tile.head_dim / 8 / k.groups;
  for (int token = 0; token < tile.count; token += vectors * kLanes) {
    Floats found[vectors][rows] = {};
    for (int g = 0; g < k.groups; ++g) {
      Ints sums[vectors][rows];
      int32_t q_sum[rows];
      for (int r = 0; r < rows; ++r) q_sum[r] = sum_of_group(block, g, k.groups, r);
      for (int v = 0; v < vectors; ++v) {
        for (int r = 0; r < rows; ++r) sums[v][r] = splat(-kBias * q_sum[r]);
      }
      dot_words<rows, vectors, nibbles>(k, table, block.pairs, g * words, (g + 1) * words, token, ahead, sums);
      for (int v = 0; v < vectors; ++v) {
        const Floats scale = load(k.scales[g] + token + v * kLanes), shift = load(k.shifts[g] + token + v * kLanes);
        for (int r = 0; r < rows; ++r) {
          found[v][r] = fma(to_floats(sums[v][r]), scale, found[v][r]);
          if (k.shifted) found[v][r] = fma(shift, splat(static_cast<float>(q_sum[r])), found[v][r]);
        }
      }
    }
    for (int v = 0; v < vectors; ++v) {
      for (int r = 0; r < rows; ++r) store(scores[r] + token + v * kLanes, found[v][r] * block.q_scales[r]);
    }
  }
}

// Of plain rows: fp32 dot products.
template <int rows, typename T>
inline void score_rows(const Tile& tile, const QueryBlock& block, Ahead& ahead, float (*scores)[kTile]) {
  for (int token = 0; token < tile.count; ++token) {
    fetch(ahead, tile.head_dim * static_cast<int>(sizeof(T)) / kLine);
    const T* row = reinterpret_cast<const T*>(tile.k.rows[token]);
    Floats sums[rows] = {};
    for (int c = 0; c < tile.head_dim; c += kLanes) {
      const Floats key = load_numbers(row + c);
      for (int r = 0; r < rows; ++r) sums[r] = fma(key, load(block.q[r] + c), sums[r]);
    }
    for (int r = 0; r < rows; ++r) scores[r][token] = sum(sums[r]);
  }
}

template <int rows>
inline void score_plain(const Tile& tile, const QueryBlock& block, Ahead& ahead, float (*scores)[kTile]) {
  const auto score = tile.k.type == Number::kFloat32 ? score_rows<rows, float>
      : tile.k.type == Number::kFloat16 ? score_rows<rows, Half> : score_rows<rows, Bfloat>;
  score(tile, block, ahead, scores);
}
