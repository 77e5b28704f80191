// One call of attend as the CPU works it off.
//
// Every query row reads its sources over one token axis: codes for the old tokens, exact rows for the first and for its newest ones.
//
//   start  lo      sunk                exact                p     end
//     |----|=sinks=|=======codes=========|======recent======|------|      lo: window;  p: the query's own position
//
// The query rows of one KV head are numbered query * group + head of the group. Work item = (batch, kv head, kItemRows of them, split of
// the token axis). An item takes tile after tile of its tokens; its rows, kBlockRows at a time, share what was loaded. Splits fill the
// threads when there are few items (decode); merge() joins them, rotates back and writes the output.
#pragma once
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

struct Attention {
  Rows q, out;
  Source k, v;
  std::optional<Source> k_recent, v_recent, k_sink, v_sink;
  std::optional<Rows> mask;
  Rotation k_rotation, v_rotation;
  Centre v_centre;
  int64_t batch, heads, kv_heads, queries, head_dim, start, end, recent_start, recent_window, window;
  float scale, softcap;
  bool causal;
  int64_t splits = 1;
  float* partial = nullptr;  // of every split and row: head_dim sums, the maximum, the sum of the weights

  int64_t group() const { return heads / kv_heads; }
  int64_t blocks() const { return (group() * queries + kItemRows - 1) / kItemRows; }
  int64_t items() const { return batch * kv_heads * blocks(); }
  int64_t rows() const { return batch * heads * queries; }
  int64_t tiles() const { return (end - start + kTile - 1) / kTile; }
  float* partial_of(int64_t split, int64_t row) const { return partial + (split * rows() + row) * (head_dim + 2); }

  Span span(int64_t query) const;
  void run();

 private:
  void merge(int64_t row) const;
};

} // namespace int4kv
