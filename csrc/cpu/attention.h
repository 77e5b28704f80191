// One call of attend as the CPU works it off.
//
// Every query row reads its sources over one token axis: codes for the old tokens, exact rows for the first and for its newest ones.
//
//   start  lo      sunk                exact                p     end
//     |----|=sinks=|=======codes=========|======recent======|------|      lo: window;  p: the query's own position
//
// The query rows of a sequence and one KV head are numbered query * group + head of the group. Work item = (sequence, kv head, kItemRows
// of them, split of the token axis). An item takes tile after tile of its tokens; its rows, kBlockRows at a time, share what was loaded.
// Splits fill the threads when there are few items (decode); merge() joins them, rotates back and writes the output: at once where there is
// one, else when all are done. Every item and row writes to a place of its own: which thread takes it changes no bit.
#pragma once
#include <c10/util/SmallVector.h>

#include "centre.h"
#include "kernels.h"
#include "rotation.h"
#include "rows.h"

namespace int4kv {

constexpr int64_t kItemRows = 32;

// The tokens one query row may read: exact rows in [lo, sunk) and [exact, hi), codes in between.
struct Span {
  int64_t lo, sunk, exact, hi;
};

// One sequence of the call: rows first_query .. first_query + queries of q[batch], which stand at the last of the tokens start .. end.
struct Sequence {
  int64_t batch, first_query, queries, start, end, recent_start;
  int64_t cache;   // batch row of the codes, or of their block table
  int64_t ring;    // batch row of the recent rows; -1: none
  int64_t splits;  // of its tokens: splits_for()
  int64_t first_item = 0, first_row = 0;  // in the call; rows of several splits alone count
  float* partial = nullptr;  // of every split and row: head_dim sums, the maximum, the sum of the weights

  int64_t tiles() const { return (end - start + kTile - 1) / kTile; }
};

// So many splits that the threads have equal shares of `items`, and each split at least one of an item's tiles.
int64_t splits_for(int64_t items, int64_t tiles);

struct Attention {
  Rows q, out;
  Source k, v;
  std::optional<Source> k_recent, v_recent, k_sink, v_sink;
  std::optional<Rows> mask;
  Rotation k_rotation, v_rotation;
  Centre v_centre;
  int64_t heads, kv_heads, head_dim, recent_window, window;
  float scale, softcap;
  bool causal;
  c10::SmallVector<Sequence, 4> sequences = {};

  int64_t group() const { return heads / kv_heads; }
  int64_t blocks(int64_t queries) const { return (group() * queries + kItemRows - 1) / kItemRows; }
  int64_t rows(const Sequence& s) const { return heads * s.queries; }
  float* partial_of(const Sequence& s, int64_t split, int64_t row) const {
    return s.partial + (split * rows(s) + row) * (head_dim + 2);
  }

  Span span(const Sequence& s, int64_t query) const;
  const Sequence& sequence_of_item(int64_t item) const;
  void run();
  // Writes a row of the output from its splits.
  void merge(const Sequence& s, int64_t row) const;

 private:
  void merge_rows(int64_t begin, int64_t end) const;
};

} // namespace int4kv
