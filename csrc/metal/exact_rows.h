// Plain rows in place of codes, a block of 8 tokens at a time: the first and the newest tokens, so it is written to be short.
#ifndef INT4KV_METAL_EXACT_ROWS_H
#define INT4KV_METAL_EXACT_ROWS_H

#include "tiles.h"

template <int D>
inline Fragment plain_fragment(thread const Source& source, const device uchar* row, uint quarter, uint w, uint t) {
  uint word = quarter * (D / 32) + w;
  return fragment_of(source.channel(row, channel_of(word, t, 0)), source.channel(row, channel_of(word, t, 1)));
}

template <int D>
inline void score_plain(
    thread const Source& source, int tile, int last, thread const Queries<D>& queries, Place at, thread float* score) {
  const device uchar* row = source.row(min(tile + int(at.row), last - 1));
  Fragment sum = fragment_of(0.0f, 0.0f);
  for (uint w = 0; w < D / 32; w++) {
    for (uint t = 0; t < kPairs; t++) {
      Fragment key = plain_fragment<D>(source, row, at.quarter, w, t), query = queries.at(kPairs * w + t, at.lane);
      simdgroup_multiply_accumulate(sum, key, query, sum);
    }
  }
  score[0] = sum.thread_elements()[0];
  score[1] = sum.thread_elements()[1];
}

// 1, or NaN when a value row holds a NaN or an infinity: a fragment of it would reach the columns that do not see the token.
template <int D>
inline half plain_scale(thread const Source& source, const device uchar* row, uint quarter) {
  float probe = 0.0f;
  for (int c = 0; c < D / 4; c++) probe = fma(source.channel(row, quarter * (D / 4) + c), 0.0f, probe);
  return half(1.0f + row_sum(probe));
}

template <int D>
inline void add_plain(
    thread const Source& source, int tile, int last, thread const float* weight, Place at, threadgroup float* weights,
    thread Sums<D>& sums) {
  const device uchar* row = source.row(min(tile + int(at.row), last - 1));
  Scales<1> scale = {{plain_scale<D>(source, row, at.quarter)}};
  transpose_weights<1>(weight, scale, at, weights);
  Fragment column_weights = weight_fragment(weights, 0, at);
  for (uint w = 0; w < D / 32; w++) {
    for (uint t = 0; t < kPairs; t++) {
      Fragment value = plain_fragment<D>(source, row, at.quarter, w, t);
      if (isnan(scale_of(scale, 0))) value = fragment_of(0.0f, 0.0f);
      simdgroup_multiply_accumulate(sums.o[kPairs * w + t], column_weights, value, sums.o[kPairs * w + t]);
    }
  }
}

#endif
