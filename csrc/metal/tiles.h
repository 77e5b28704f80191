// Tiles of 8 * B tokens as fragments, from codes or from plain rows: the two products of attention over them.
//
// Block b of a tile is tokens 8 b .. 8 b + 7, one per fragment row; a lane owns the token of its row and a quarter of its channels.
// Fragment 4 w + t is pair t (codes.h) of word w of every lane's quarter.
#ifndef INT4KV_METAL_TILES_H
#define INT4KV_METAL_TILES_H

#include "fragments.h"
#include "source.h"

// A lane's place in the fragments: it holds (row, column) and (row, column + 1).
struct Place {
  uint lane, row, column, quarter;
};

// The words of this lane's quarter of B tokens, a block apart.
template <int D, int B>
inline void load_words(thread const Source& source, int tile, int last, Place at, thread uint* words) {
  constexpr int W = D / 32;
  for (int b = 0; b < B; b++) {
    const device uchar* row = source.row(min(tile + 8 * b + int(at.row), last - 1)) + at.quarter * (W * 4);
    if (W % 4 == 0) {
      for (int w = 0; w < W / 4; w++) {
        uint4 four = ((const device uint4*)row)[w];
        for (int i = 0; i < 4; i++) words[b * W + 4 * w + i] = four[i];
      }
    } else {
      uint2 two = *(const device uint2*)row;
      words[b * W] = two.x;
      words[b * W + 1] = two.y;
    }
  }
}

template <int D, int B>
inline void score_codes(const thread uint* words, const threadgroup float2* queries, uint lane, thread Fragment* score) {
  constexpr int W = D / 32;
  for (int b = 0; b < B; b++) score[b] = fragment_of(0.0f, 0.0f);
  for (int w = 0; w < W; w++) {
    for (uint t = 0; t < kPairs; t++) {
      float2 pair = queries[32 * (kPairs * w + t) + lane];
      Fragment query = fragment_of(pair.x, pair.y);
      for (int b = 0; b < B; b++) {
        half2 level = level_pair(words[b * W + w], t);
        Fragment key = fragment_of(float(level.x), float(level.y));
        simdgroup_multiply_accumulate(score[b], key, query, score[b]);
      }
    }
  }
}

template <int D, int B>
inline void add_codes(const thread uint* words, const threadgroup float* weights, Place at, thread Fragment* o) {
  constexpr int W = D / 32;
  for (int b = 0; b < B; b++) {
    float2 pair = *(const threadgroup float2*)(weights + at.row * (8 * B + 4) + 8 * b + at.column);
    Fragment weight = fragment_of(pair.x, pair.y);
    for (int w = 0; w < W; w++) {
      for (uint t = 0; t < kPairs; t++) {
        half2 level = level_pair(words[b * W + w], t);
        Fragment value = fragment_of(float(level.x), float(level.y));
        simdgroup_multiply_accumulate(o[kPairs * w + t], weight, value, o[kPairs * w + t]);
      }
    }
  }
}

// Plain rows in place of codes: the newest tokens, so it is written to be short.
template <int D>
inline Fragment plain_fragment(thread const Source& source, const device uchar* row, uint quarter, int w, uint t) {
  uint word = quarter * (D / 32) + w;
  return fragment_of(source.channel(row, channel_of(word, t, 0)), source.channel(row, channel_of(word, t, 1)));
}

template <int D, int B>
inline void score_plain(
    thread const Source& source, int tile, int last, const threadgroup float2* queries, Place at, thread Fragment* score) {
  for (int b = 0; b < B; b++) {
    const device uchar* row = source.row(min(tile + 8 * b + int(at.row), last - 1));
    score[b] = fragment_of(0.0f, 0.0f);
    for (int w = 0; w < D / 32; w++) {
      for (uint t = 0; t < kPairs; t++) {
        float2 pair = queries[32 * (kPairs * w + t) + at.lane];
        Fragment key = plain_fragment<D>(source, row, at.quarter, w, t), query = fragment_of(pair.x, pair.y);
        simdgroup_multiply_accumulate(score[b], key, query, score[b]);
      }
    }
  }
}

// 1, or NaN when a value row holds a NaN or an infinity: a fragment of it would reach the columns that do not see the token.
template <int D>
inline float plain_scale(thread const Source& source, const device uchar* row, uint quarter) {
  float probe = 0.0f;
  for (int c = 0; c < D / 4; c++) probe = fma(source.channel(row, quarter * (D / 4) + c), 0.0f, probe);
  return 1.0f + row_sum(probe);
}

template <int D, int B>
inline void add_plain(
    thread const Source& source, int tile, int last, const thread float* scale, const threadgroup float* weights, Place at,
    thread Fragment* o) {
  for (int b = 0; b < B; b++) {
    const device uchar* row = source.row(min(tile + 8 * b + int(at.row), last - 1));
    float2 pair = *(const threadgroup float2*)(weights + at.row * (8 * B + 4) + 8 * b + at.column);
    Fragment weight = fragment_of(pair.x, pair.y);
    for (int w = 0; w < D / 32; w++) {
      for (uint t = 0; t < kPairs; t++) {
        Fragment value = plain_fragment<D>(source, row, at.quarter, w, t);
        if (isnan(scale[b])) value = fragment_of(0.0f, 0.0f);
        simdgroup_multiply_accumulate(o[kPairs * w + t], weight, value, o[kPairs * w + t]);
      }
    }
  }
}

#endif
