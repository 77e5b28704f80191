// Scores of a tile of codes.
#ifndef INT4KV_CUDA_KEYS_H
#define INT4KV_CUDA_KEYS_H

#include "ring.h"

// The lane's W words of a plane of 4 bits of the tile, `fixed` bytes after the lane's place.
template <int W>
inline void read_words(const threadgroup uchar* tile, uint lane_offset, uint fixed, uint* words) {
  constexpr uint bytes = row_bytes(32 * W, k_bits);
#pragma unroll
  for (uint i = 0; i < W; i += 4) {
    const threadgroup uchar* from = tile + ring_offset(bytes, lane_offset, fixed + 4 * i);
    if (W < 4) {
      uint2 two = *(const threadgroup uint2*)from;
      words[0] = two.x, words[1] = two.y;
    } else {
      uint4 four = *(const threadgroup uint4*)from;
      words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
    }
  }
}

// The lane's quarter of its key of block b.
template <int D, int B>
inline void read_key(const Tiles<D, B>& tiles, uint b, Place at, PlaneWords<D / 32>& words) {
  constexpr uint bytes = row_bytes(D, k_bits);
  if (is_permuted(bytes)) {
    read_words<D / 32>(tiles.stage, tiles.key, 8 * b * bytes, words.low);
    if (INT4KV_HIGH_PLANE(k_bits) == 4) read_words<D / 32>(tiles.stage, tiles.key, 8 * b * bytes + D / 2, words.high);
  } else {
    load_words<D / 32>(tiles.stage + (8 * b + at.column_) * ring_stride(bytes), k_bits, D, at.quarter * (D / 32), true, words);
  }
}

// score[i]: of the lane's column and token i, before the scale of the token.
template <int D, int B>
inline void score_codes(const Tiles<D, B>& tiles, Coding coding, const Queries<D>& queries, Place at, float* score) {
  PlaneWords<D / 32> words[B];
  int s[B][4] = {};
#pragma unroll
  for (int b = 0; b < B; b++) read_key<D, B>(tiles, uint(b), at, words[b]);
#pragma unroll
  for (uint w = 0; w < D / 32; w++) {
    uint4 query = queries.bytes[32 * w + at.lane];
#pragma unroll
    for (int b = 0; b < B; b++) {
      CodeWord code = code_word<D / 32>(words[b], coding.bits, at.quarter * (D / 32), w);
      multiply_keys(s[b], query, level_bytes(code, coding, 0), level_bytes(code, coding, 1));
    }
  }
#pragma unroll
  for (int b = 0; b < B; b++) {
#pragma unroll
    for (int e = 0; e < 2; e++) score[2 * b + e] = fma(float(256 * s[b][e] + s[b][2 + e]), queries.unit, -queries.offset);
  }
}

#endif
