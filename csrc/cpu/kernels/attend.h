// One tile of tokens for a block of query rows: scores, weights, sums.
#include "load_tile.h"
#include "score.h"
#include "weigh.h"
#include "accumulate.h"

template <int rows>
inline void attend_rows(Workspace& work, QueryBlock& block) {
  const Tile& tile = work.tile;
  Weights& weights = work.weights;
  const auto score = tile.k.plain ? score_plain<rows> : tile.k.nibbles ? score_codes<rows, true> : score_codes<rows, false>;
  const auto accumulate =
      tile.v.plain ? accumulate_plain<rows> : tile.v.nibbles ? accumulate_codes<rows, true> : accumulate_codes<rows, false>;
  score(tile, block, work.ahead, weights.p);
  weigh(tile, block, weights);
  accumulate(tile, weights, work.ahead, block);
  fetch(work.ahead, INT32_MAX);  // what is left
}

inline void attend_tile(Workspace& work, QueryBlock& block) {
  static constexpr void (*by_rows[])(Workspace&, QueryBlock&) = {
      attend_rows<1>, attend_rows<2>, attend_rows<3>, attend_rows<4>, attend_rows<5>, attend_rows<6>, attend_rows<7>, attend_rows<8>};
  by_rows[block.rows - 1](work, block);
}

inline void start_block(QueryBlock& block) {
  for (int r = 0; r < block.rows; ++r) {
    block.maximum[r] = kFloor;
    std::memset(block.o[r], 0, sizeof block.o[r]);
    std::memset(block.sums[r], 0, sizeof block.sums[r]);
  }
  std::memset(block.shifts, 0, sizeof block.shifts);
  encode_queries(block);
}

// What every channel of a group gets on top joins o; `totals` are the sums of the weights. `groups` are V's.
inline void finish_block(QueryBlock& block, int groups, float* totals) {
  for (int r = 0; r < block.rows; ++r) {
    totals[r] = sum(load(block.sums[r]));
    for (int c = 0; c < block.head_dim; c += kLanes) {
      store(block.o[r] + c, load(block.o[r] + c) + block.shifts[c * groups / block.head_dim][r]);
    }
  }
}
