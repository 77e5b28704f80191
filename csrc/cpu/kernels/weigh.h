// Scores of a tile -> weights of its values: p = 2^(score - maximum), with the maximum and the sum carried from tile to tile.
//
// Codes take the weight p * scale as 16-bit integers, scaled by the row's largest of this tile: a scale over all tiles would lose a flat
// tail behind a peak. Tokens that a row does not see have p = 0 whatever is stored there. Each step is done for all rows before the next,
// and what a step reduces to one number per row is reduced for all of them together, lane = row.

// to[r] = the lanes of x[r] joined, for all kBlockRows.
template <typename T, typename Vector, typename Operation>
inline void reduce_rows(const Vector* x, Operation operation, T* to) {
  for (int r = 0; r < kBlockRows; r += kLanes) store(to + r, fold_each<(kBlockRows < kLanes ? kBlockRows : kLanes)>(x + r, operation));
}

inline Floats only_seen(Floats x, uint64_t seen, int token) {
  return lanes_of(seen >> token) ? x : Floats{};
}

// `all`: the row sees every token of a full tile.
template <bool all>
constexpr int end(const Tile& tile) {
  return all ? kTile : tile.count;
}

// The largest scores, in lanes.
template <bool all>
inline Floats highest_scores(const Tile& tile, const QueryBlock& block, int r, float* scores) {
  Floats top = splat(kFloor);
  for (int t = 0; t < end<all>(tile); t += kLanes) {
    Floats score = load(scores + t);
    if (block.softcap > 0) score = tanh(score / block.softcap) * (block.softcap * kLog2e);
    if (!all) score = lanes_of(block.seen[r] >> t) ? score : splat(kFloor);
    if (!all || block.softcap > 0) store(scores + t, score);
    top = maximum(score, top);
  }
  return top;
}

inline void raise_maxima(const Floats* tops, QueryBlock& block, Weights& weights) {
  alignas(64) float highest[kRowLanes];
  reduce_rows(tops, [](Floats a, Floats b) { return maximum(a, b); }, highest);
  for (int r = 0; r < block.rows; r += kLanes) {
    const Floats before = load(block.maximum + r), now = maximum(load(highest + r), before);
    store(weights.rescale + r, exp2_negative(before - now));
    store(block.maximum + r, now);
  }
}

template <bool all>
inline void exponentiate(const Tile& tile, QueryBlock& block, int r, Weights& weights) {
  float* p = weights.p[r];
  Floats total = load(block.sums[r]) * weights.rescale[r];
  const Floats highest = splat(block.maximum[r]);
  for (int t = 0; t < end<all>(tile); t += kLanes) {
    Floats x = exp2_negative(load(p + t) - highest);
    if (!all) x = only_seen(x, block.seen[r], t);
    total += x;
    store(p + t, x);
  }
  store(block.sums[r], total);
}

// Weights times the scales of one group; returns the largest, in lanes.
template <bool all>
inline Floats scale_weights(const Tile& tile, const QueryBlock& block, int r, int g, Weights& weights) {
  Floats top = {};
  for (int t = 0; t < end<all>(tile); t += kLanes) {
    Floats weight = load(weights.p[r] + t) * load(tile.v.scales[g] + t);
    if (!all) weight = only_seen(weight, block.seen[r], t);
    store(weights.scaled[r] + t, weight);
    top = maximum(magnitude_of(weight), top);
  }
  return top;
}

template <bool all>
inline Floats sum_shifts(const Tile& tile, const QueryBlock& block, int r, int g, const Weights& weights) {
  Floats total = {};
  for (int t = 0; t < end<all>(tile); t += kLanes) {
    const Floats shifted = load(weights.p[r] + t) * load(tile.v.shifts[g] + t);
    total += all ? shifted : only_seen(shifted, block.seen[r], t);
  }
  return total;
}

// To 16-bit integers, in pairs as accumulate.h wants them; returns their sum, in lanes.
template <bool all>
inline Ints encode_weights(const Tile& tile, int r, int g, float inverse, Weights& weights) {
  uint16_t integers[kTile];
  Ints total = {};
  for (int t = 0; t < end<all>(tile); t += kLanes) {
    const Ints integer = to_ints(load(weights.scaled[r] + t) * inverse);
    total += integer;
    store_shorts(integers + t, integer & 0xffff);
  }
  store_pairs(integers, (end<all>(tile) + 3) / 4 * 2, weights.pairs[g][r]);
  return total;
}

// What the group's shifts add to every channel.
inline void add_shifts(const Tile& tile, const bool* all, int g, const Weights& weights, QueryBlock& block) {
  Floats shifts[kBlockRows];
  for (int r = 0; r < kBlockRows; ++r) {
    if (r >= block.rows) shifts[r] = Floats{};
    else shifts[r] = all[r] ? sum_shifts<true>(tile, block, r, g, weights) : sum_shifts<false>(tile, block, r, g, weights);
  }
  alignas(64) float sums[kRowLanes];
  reduce_rows(shifts, [](Floats a, Floats b) { return a + b; }, sums);
  for (int r = 0; r < kBlockRows; r += kLanes) store(block.shifts[g] + r, load(block.shifts[g] + r) + load(sums + r));
}

// The group's weights of all rows, from their p.
inline void encode_group(const Tile& tile, const bool* all, int g, const QueryBlock& block, Weights& weights) {
  Floats tops[kBlockRows];
  Ints totals[kBlockRows];
  for (int r = 0; r < kBlockRows; ++r) tops[r] = Floats{}, totals[r] = Ints{};
  for (int r = 0; r < block.rows; ++r) {
    tops[r] = all[r] ? scale_weights<true>(tile, block, r, g, weights) : scale_weights<false>(tile, block, r, g, weights);
  }
  alignas(64) float most[kRowLanes], inverse[kRowLanes];
  reduce_rows(tops, [](Floats a, Floats b) { return maximum(a, b); }, most);
  for (int r = 0; r < kBlockRows; r += kLanes) {
    store(inverse + r, load(most + r) > 1e-30f ? 32767.0f / load(most + r) : Floats{});
    store(weights.scales[g] + r, load(most + r) / 32767.0f);
  }
  for (int r = 0; r < block.rows; ++r) {
    totals[r] = all[r] ? encode_weights<true>(tile, r, g, inverse[r], weights) : encode_weights<false>(tile, r, g, inverse[r], weights);
  }
  reduce_rows(totals, [](Ints a, Ints b) { return a + b; }, weights.sums[g]);
}

// Scores in weights.p become weights.
inline void weigh(const Tile& tile, QueryBlock& block, Weights& weights) {
  bool all[kBlockRows];
  Floats tops[kBlockRows];
  for (Floats& top : tops) top = Floats{};
  for (int r = 0; r < block.rows; ++r) {
    all[r] = block.seen[r] == ~uint64_t{0};
    tops[r] = all[r] ? highest_scores<true>(tile, block, r, weights.p[r]) : highest_scores<false>(tile, block, r, weights.p[r]);
  }
  raise_maxima(tops, block, weights);
  for (int r = 0; r < block.rows; ++r) {
    all[r] ? exponentiate<true>(tile, block, r, weights) : exponentiate<false>(tile, block, r, weights);
  }
  for (int g = 0; g < kMaxGroups; ++g) {
    for (int r = 0; r < block.rows; r += kLanes) store(block.shifts[g] + r, load(block.shifts[g] + r) * load(weights.rescale + r));
  }
  for (int g = 0; !tile.v.plain && g < tile.v.groups; ++g) {
    if (tile.v.shifted) add_shifts(tile, all, g, weights, block);
    encode_group(tile, all, g, block, weights);
  }
}
