// A tile from where it is stored to the form in which the products take it (tile.h): every packed row is read here, once.

// Three bits as nibbles: 8 bytes of two bits and 4 bytes of one become 16 bytes, as format.h folds them.
inline void widen_three(const uint8_t* low, const uint8_t* high, uint8_t* nibbles) {
  uint64_t two;
  uint32_t one;
  std::memcpy(&two, low, 8);
  std::memcpy(&one, high, 4);
  const auto bit = [one](int i) { return static_cast<uint64_t>(one >> i & 0x11111111u); };
  const uint64_t words[2] = {
      (two & 0x3333333333333333u) | (bit(0) | bit(1) << 32) << 2, (two >> 2 & 0x3333333333333333u) | (bit(2) | bit(3) << 32) << 2};
  std::memcpy(nibbles, words, 16);
}

// 32 levels from two tables of 16.
inline void replace_by_levels(const Levels& levels, int count, uint8_t* codes) {
  typedef int8_t Bytes __attribute__((vector_size(4 * kLanes)));
  const Table first = load_table(levels.biased), second = load_table(levels.biased + 16);
  for (int i = 0; i < count; i += 4 * kLanes) {
    const Ints code = load(reinterpret_cast<const int32_t*>(codes + i)), index = code & 0x0f0f0f0f;
    const Ints upper = reinterpret_cast<Ints>(reinterpret_cast<Bytes>(code & 0x10101010) != 0);
    store(reinterpret_cast<int32_t*>(codes + i), (lookup(index, first) & ~upper) | (lookup(index, second) & upper));
  }
}

// Rows of 3, 5 or 8 bits: as nibbles, or as one biased level a byte.
inline const uint8_t* const* widen(const StoredTile& stored, int count, int head_dim, const Levels& levels, Widened& wide) {
  for (int t = 0; t < count; ++t) {
    const uint8_t *row = stored.rows[t], *above = row + head_dim / 4;
    for (int u = 0; stored.bits == 3 && u < head_dim / INT4KV_UNIT; ++u) widen_three(row + 8 * u, above + 4 * u, wide.rows[t] + 16 * u);
    if (stored.bits != 3) unpack(row, head_dim, stored.bits, wide.rows[t]);
    if (stored.bits == 5) replace_by_levels(levels, head_dim, wide.rows[t]);
  }
  for (int t = 0; t < kTile; ++t) wide.at[t] = wide.rows[t < count ? t : count - 1];
  return wide.at;
}

inline void load_scales(const StoredTile& stored, const Levels& levels, TileSide& side) {
  Ints shifted = {};
  for (int g = 0; g < stored.groups; ++g) {
    for (int t = 0; t < kTile; t += kLanes) {
      const Floats scale = halves_to_floats(stored.scales[g] + t);
      const Floats minimum = stored.codebook == INT4KV_ASYMMETRIC ? halves_to_floats(stored.minima[g] + t) : Floats{};
      store(side.scales[g] + t, scale);
      const Floats shift = fma(scale, splat(levels.offset), minimum);  // NaN where the scale is not finite
      store(side.shifts[g] + t, shift);
      shifted |= bits_of(shift);
    }
  }
  side.shifted = sum(Ints(shifted != 0)) != 0;
}

// K: lane = token.
inline void transpose_rows(const uint8_t* const* rows, int count, int bytes, int32_t* codes) {
  for (int t = 0; t < count; t += kLanes) {
    for (int at = 0; at < bytes; at += 16) {
      Ints words[4];
      transpose(rows + t, at, words);
      for (int i = 0; i < 4; ++i) store(codes + (at / 4 + i) * kTile + t, words[i]);
    }
  }
}

// V: lane = channel.
inline void interleave_rows(const uint8_t* const* rows, int count, int bytes, int32_t* codes) {
  for (int t = 0; t < count; t += 4) {
    const uint8_t* const four[4] = {rows[t], rows[t + 2], rows[t + 1], rows[t + 3]};
    for (int at = 0; at < bytes; at += 16, codes += 16) interleave(four, at, codes);
  }
}

// Plain rows whose channels lie apart, as fp32.
inline void gather_rows(const StoredTile& stored, int count, int head_dim, TileSide& side) {
  side.type = Number::kFloat32;
  for (int t = 0; t < count; ++t) {
    load_row(reinterpret_cast<const char*>(stored.rows[t]), stored.channel_stride, stored.type, head_dim, nullptr, side.gathered[t]);
    side.rows[t] = reinterpret_cast<const uint8_t*>(side.gathered[t]);
  }
}

inline void load_plain(const StoredTile& stored, int count, int head_dim, TileSide& side) {
  if (stored.channel_stride != (stored.type == Number::kFloat32 ? 4 : 2)) return gather_rows(stored, count, head_dim, side);
  side.type = stored.type;
  std::memcpy(side.rows, stored.rows, count * sizeof side.rows[0]);
}

inline void load_side(const StoredTile& stored, int count, int head_dim, bool transposed, Widened& wide, TileSide& side) {
  side.plain = stored.plain;
  if (stored.plain) return load_plain(stored, count, head_dim, side);
  side.levels = &levels_of(stored.bits, stored.codebook);
  side.nibbles = stored.bits <= 4;
  side.groups = stored.groups;
  load_scales(stored, *side.levels, side);
  const uint8_t* const* rows = stored.bits == 4 ? stored.rows : widen(stored, count, head_dim, *side.levels, wide);
  const auto rearrange = transposed ? transpose_rows : interleave_rows;
  rearrange(rows, count, side.nibbles ? head_dim / 2 : head_dim, side.codes);
}

inline void load_tile(const StoredTile& k, const StoredTile& v, Workspace& work) {
  load_side(k, work.tile.count, work.tile.head_dim, true, work.widened, work.tile.k);
  load_side(v, work.tile.count, work.tile.head_dim, false, work.widened, work.tile.v);
}

// Asks for up to `lines` lines of what is to come.
inline void fetch(Ahead& ahead, int lines) {
  while (lines > 0 && ahead.count > 0) {
    auto& span = ahead.spans[ahead.count - 1];
    const char *at = span.at, *end = span.end;
    for (; lines > 0 && at < end; --lines, at += kLine) __builtin_prefetch(at);
    span.at = at;
    ahead.count -= at >= end;
  }
}
