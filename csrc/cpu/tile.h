// What attend hands to the kernels: a tile of tokens, and the block of query rows that attends to it. Plain C++, no torch.
#pragma once
#include <cstdint>

#include "../format.h"

namespace int4kv {

constexpr int kTile = 64;      // tokens: the bits of a word say which a row sees
constexpr int kBlockRows = 8;  // query rows that share a tile's decoded codes: their sums stay in registers
constexpr int kRowLanes = 16;  // a number of every row is an array of so many: whole vectors
constexpr int kMaxCopies = 8;  // simd/: how often a factor is written so that it need not be broadcast
constexpr int kMaxGroups = INT4KV_MAX_HEAD_DIM / INT4KV_UNIT;
constexpr int kLine = 64;      // bytes

enum class Number { kFloat32, kFloat16, kBfloat16 };

// K or V of a tile's tokens where they lie. A ring may wrap inside a tile, so every token has its pointer; those behind the last token
// repeat it.
struct StoredTile {
  const uint8_t* rows[kTile];
  int64_t channel_stride;  // bytes; of codes 1
  uint16_t scales[kMaxGroups][kTile], minima[kMaxGroups][kTile];  // fp16
  bool plain;   // rows of numbers of a type, not of codes
  Number type;
  int bits, codebook, groups;
};

// Where the tile to come lies, last span first: its lines are asked for one by one between the products of the tile at hand. All at once
// they would fill the buffers that every load waits for.
struct Ahead {
  struct {
    const char *at, *end;
  } spans[4 * kTile];  // at worst every token's codes and scales, of K and of V
  int count;
};

// A codebook as unsigned bytes: value = scale * (biased[code] - kBias + offset) + minimum.
constexpr int kBias = 128;
struct Levels {
  uint8_t biased[32];  // of up to 5 bits; at 8 bits biased[code] is code
  float offset;
};
const Levels& levels_of(int bits, int codebook);

// The same tile as the products take it. Of codes:
//
//   K    codes[w][token]       four bytes of 32 bits, neighbours in the row, lane = token: the sums need no reduction
//   V    codes[token / 4][i]   byte i of the rows of tokens t, t + 2, t + 1 and t + 3, lane = channel: bytes 0 and 2 are neighbours
//
// where a byte is two codes (nibbles, as a plane of 4 bits has them) or one biased level. value = scale * level + shift.
struct TileSide {
  bool plain, nibbles, shifted;
  int groups;
  const Levels* levels;
  alignas(64) int32_t codes[INT4KV_MAX_HEAD_DIM / 4 * kTile];
  alignas(64) float scales[kMaxGroups][kTile], shifts[kMaxGroups][kTile];
  // Plain rows stay where they lie, but for those whose channels lie apart.
  const uint8_t* rows[kTile];
  Number type;
  alignas(64) float gathered[kTile][INT4KV_MAX_HEAD_DIM];
};

struct Tile {
  int count, head_dim;
  TileSide k, v;
};

// Up to kBlockRows query rows. q is rotated and scaled, so that 2^(q . k) are the weights.
struct QueryBlock {
  int rows, head_dim;
  float softcap;                // 0: none; else q . k are scores in natural units
  uint64_t seen[kBlockRows];    // of the tile at hand: bit t for token t
  alignas(64) float maximum[kRowLanes];
  alignas(64) float q[kBlockRows][INT4KV_MAX_HEAD_DIM];
  alignas(64) float o[kBlockRows][INT4KV_MAX_HEAD_DIM];
  alignas(64) float sums[kBlockRows][kRowLanes];  // of the weights, in lanes
  alignas(64) float shifts[kMaxGroups][kRowLanes];  // what every channel of a group gets on top of o
  // q as 16-bit integers: q = scale * integer, in pairs as the codes of four bytes pair up (score.h), [head_dim / 2][rows][kCopies]
  alignas(64) int32_t pairs[INT4KV_MAX_HEAD_DIM / 2 * kBlockRows * kMaxCopies];
  float q_scales[kBlockRows];
  int32_t q_sums[kMaxGroups][kBlockRows];     // of the integers of a group's channels
};

// Scores, then weights, of a tile. Codes take the weight p * scale as 16-bit integers.
struct Weights {
  alignas(64) float rescale[kRowLanes];  // 2^(maximum before - maximum)
  alignas(64) float p[kBlockRows][kTile], scaled[kBlockRows][kTile];
  alignas(64) int32_t pairs[kMaxGroups][kBlockRows][kTile / 2 * kMaxCopies];  // of tokens 2 i and 2 i + 1: [kTile / 2][kCopies]
  alignas(64) float scales[kMaxGroups][kRowLanes];  // weight = scale * integer
  alignas(64) int32_t sums[kMaxGroups][kRowLanes];  // of the integers
};

// Rows of 3, 5 and 8 bits on their way into a tile.
struct Widened {
  alignas(64) uint8_t rows[kTile][INT4KV_MAX_HEAD_DIM];
  const uint8_t* at[kTile];
};

// What a thread works in; nothing is allocated on the way.
struct Workspace {
  Tile tile;
  Ahead ahead;
  Widened widened;
  Weights weights;
};

constexpr float kLog2e = 1.44269504f;
constexpr float kFloor = -1e30f;  // the maximum of no scores; a score never is as low

} // namespace int4kv
