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

// The first word of this lane's quarter of a row.
template <int D>
inline uint first_word(Place at) {
  return at.quarter * (D / 32);
}

// The words of this lane's quarter of B tokens, a block apart.
template <int D, int B>
inline void load_tile(thread const Source& source, int tile, int last, Place at, thread PlaneWords<D / 32>* words) {
  for (int b = 0; b < B; b++) {
    const device uchar* row = source.row(min(tile + 8 * b + int(at.row), last - 1));
    load_words<D / 32>(row, source.coding.bits, D, first_word<D>(at), true, words[b]);
  }
}

template <int D, int B>
inline void score_codes(
    const thread PlaneWords<D / 32>* words, Coding coding, const threadgroup float2* queries, Place at, thread Fragment* score) {
  for (int b = 0; b < B; b++) score[b] = fragment_of(0.0f, 0.0f);
  for (uint w = 0; w < D / 32; w++) {
    CodeWord code[B];
    for (int b = 0; b < B; b++) code[b] = code_word<D / 32>(words[b], coding.bits, first_word<D>(at), w);
    for (uint t = 0; t < kPairs; t++) {
      float2 pair = queries[32 * (kPairs * w + t) + at.lane];
      Fragment query = fragment_of(pair.x, pair.y);
      for (int b = 0; b < B; b++) {
        float2 level = level_pair(code[b], t, coding);
        Fragment key = fragment_of(level.x, level.y);
        simdgroup_multiply_accumulate(score[b], key, query, score[b]);
      }
    }
  }
}

template <int D, int B>
inline void add_codes(
    const thread PlaneWords<D / 32>* words, Coding coding, const threadgroup float* weights, Place at, thread Fragment* o) {
  for (int b = 0; b < B; b++) {
    float2 pair = *(const threadgroup float2*)(weights + at.row * (8 * B + 4) + 8 * b + at.column);
    Fragment weight = fragment_of(pair.x, pair.y);
    for (uint w = 0; w < D / 32; w++) {
      CodeWord code = code_word<D / 32>(words[b], coding.bits, first_word<D>(at), w);
      for (uint t = 0; t < kPairs; t++) {
        float2 level = level_pair(code, t, coding);
        Fragment value = fragment_of(level.x, level.y);
        simdgroup_multiply_accumulate(o[kPairs * w + t], weight, value, o[kPairs * w + t]);
      }
    }
  }
}

// Plain rows in place of codes: the first and the newest tokens, so it is written to be short.
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
