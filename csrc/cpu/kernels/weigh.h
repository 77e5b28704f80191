// Scores of a tile -> weights of its values: p = 2^(score - maximum), with the maximum and the sum carried from tile to tile.
//
// Codes take the weight p * scale as 16-bit integers, scaled by the row's largest of this tile: a scale over all tiles would lose a flat
// tail behind a peak. Tokens that a row does not see have p = 0 whatever is stored there. Each step is done for all rows before the next:
// what a step reduces to one number per row takes long, and the rows' reductions overlap.

inline Floats only_seen(Floats x, uint64_t seen, int token) {
  return lanes_of(seen >> token) ? x : Floats{};
}

// `cut`: there are tokens in the tile's vectors that the row does not see.
template <bool cut>
inline float highest_score(const Tile& tile, const QueryBlock& block, int r, float* scores) {
  Floats top = splat(kFloor);
  for (int t = 0; t < tile.count; t += kLanes) {
    Floats score = load(scores + t);
    if (block.softcap > 0) score = tanh(score / block.softcap) * (block.softcap * kLog2e);
    if (cut) score = lanes_of(block.seen[r] >> t) ? score : splat(kFloor);
    if (cut || block.softcap > 0) store(scores + t, score);
    top = maximum(score, top);
  }
  return largest(top);
}

inline void raise_maxima(const float* tops, QueryBlock& block, Weights& weights) {
  for (int r = 0; r < block.rows; r += kLanes) {
    const Floats before = load(block.maximum + r), now = maximum(load(tops + r), before);
    store(weights.rescale + r, exp2_negative(before - now));
    store(block.maximum + r, now);
  }
}

template <bool cut>
inline void exponentiate(const Tile& tile, QueryBlock& block, int r, Weights& weights) {
  float* p = weights.p[r];
  Floats total = load(block.sums[r]) * weights.rescale[r];
  const Floats highest = splat(block.maximum[r]);
  for (int t = 0; t < tile.count; t += kLanes) {
    Floats x = exp2_negative(load(p + t) - highest);
    if (cut) x = only_seen(x, block.seen[r], t);
    total += x;
    store(p + t, x);
  }
  store(block.sums[r], total);
}

// Weights times the scales of one group; returns the largest.
template <bool cut>
inline float scale_weights(const Tile& tile, QueryBlock& block, int r, int g, Weights& weights) {
  const TileSide& v = tile.v;
  const float* p = weights.p[r];
  Floats top = {}, shift = {};
  for (int t = 0; t < tile.count; t += kLanes) {
    const Floats x = load(p + t);
    Floats weight = x * load(v.scales[g] + t), shifted = x * load(v.shifts[g] + t);
    if (cut) weight = only_seen(weight, block.seen[r], t), shifted = only_seen(shifted, block.seen[r], t);
    store(weights.scaled[r] + t, weight);
    top = maximum(from_bits(bits_of(weight) & INT32_MAX), top);
    shift += shifted;
  }
  block.shifts[r][g] = block.shifts[r][g] * weights.rescale[r] + sum(shift);
  return largest(top);
}

// To 16-bit integers, in pairs as accumulate.h wants them.
inline void encode_weights(const Tile& tile, const QueryBlock& block, int r, int g, float most, Weights& weights) {
  const float inverse = most > 1e-30f ? 32767.0f / most : 0.0f;
  const int apart = block.rows * kCopies;
  int32_t* to = weights.pairs[g] + r * kCopies;
  Ints total = {};
  for (int t = 0; t < tile.count; t += kLanes) {
    const Ints integer = to_ints(load(weights.scaled[r] + t) * inverse);
    total += integer;
    int32_t pairs[kLanes];
    store(pairs, pair_up(integer));
    for (int i = 0; i < kLanes; i += 4, to += 2 * apart) {
      store_copies(to, pairs[i]);
      store_copies(to + apart, pairs[i + 1]);
    }
  }
  weights.scales[g][r] = most / 32767.0f;
  weights.sums[g][r] = sum(total);
}

// Scores in weights.p become weights.
inline void weigh(const Tile& tile, QueryBlock& block, Weights& weights) {
  const int padded = (tile.count + kLanes - 1) / kLanes * kLanes;
  const uint64_t whole = padded == 64 ? ~uint64_t{0} : (uint64_t{1} << padded) - 1;
  bool cut[kBlockRows];
  alignas(64) float tops[kRowLanes];
  for (int r = 0; r < block.rows; ++r) {
    cut[r] = (block.seen[r] & whole) != whole;
    tops[r] = cut[r] ? highest_score<true>(tile, block, r, weights.p[r]) : highest_score<false>(tile, block, r, weights.p[r]);
  }
  raise_maxima(tops, block, weights);
  for (int r = 0; r < block.rows; ++r) {
    cut[r] ? exponentiate<true>(tile, block, r, weights) : exponentiate<false>(tile, block, r, weights);
  }
  for (int g = 0; !tile.v.plain && g < tile.v.groups; ++g) {
    for (int r = 0; r < block.rows; ++r) {
      tops[r] = cut[r] ? scale_weights<true>(tile, block, r, g, weights) : scale_weights<false>(tile, block, r, g, weights);
    }
    for (int r = 0; r < block.rows; ++r) encode_weights(tile, block, r, g, tops[r], weights);
  }
  for (int r = 0; tile.v.plain && r < block.rows; ++r) {
    for (int g = 0; g < kMaxGroups; ++g) block.shifts[r][g] *= weights.rescale[r];
  }
}
