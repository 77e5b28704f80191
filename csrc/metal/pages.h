// The pages of many sequences: which sequence a threadgroup serves, and in which page a token lies. Compiled in where `paged` is 1.
//
// Nothing in a tensor leads outside another: a number that does not exist is taken for one that does.
#ifndef INT4KV_METAL_PAGES_H
#define INT4KV_METAL_PAGES_H

#include "rows.h"

INT4KV_FUNCTION_CONSTANT(paged, INT4KV_PAGED_CONSTANT);

// The op's int32 tensors.
struct Batch {
  const device int* block_table;
  const device int* lengths;
  const device int* query_starts;
  const device int* rings;
  const device int* recent_starts;
};

// One sequence: rows first .. first + queries of q[batch], which stand at the last of its keys. Exact rows from recent_from on lie in
// batch row `ring` of the recent ones.
struct Sequence {
  uint batch, first, queries, ring;
  int keys, recent_from, splits;
  const device int* table;  // its row of the block table

  uint rows(constant Int4kvAttend& p) const {
    return p.group * queries;
  }
};

// As many splits as the sequence would have alone, of those that the grid has.
inline int splits_of(constant Int4kvAttend& p, int keys, int queries) {
  int seen = p.window > 0 ? min(keys, p.window + queries) : keys;
  return clamp(int4kv_splits(seen, p.splitting.whole, p.splitting.fine, p.splitting.round, p.splitting.more), 1, int(p.splits));
}

inline Sequence sequence_of(constant Int4kvAttend& p, Batch batch, uint number) {
  if (!paged) return {number, 0, p.queries, number, int(p.keys), p.recent_from, int(p.splits), batch.block_table};
  Sequence s;
  int first = clamp(batch.query_starts[number], 0, int(p.queries));
  int last = clamp(batch.query_starts[number + 1], first, int(p.queries));
  s.batch = 0;
  s.first = uint(first);
  s.queries = uint(last - first);
  s.keys = clamp(batch.lengths[number], 0, int(p.keys));
  s.splits = splits_of(p, s.keys, last - first);
  s.table = batch.block_table + long(number) * p.table_width;
  s.ring = 0;
  s.recent_from = s.keys;
  int ring = p.rings > 0 ? batch.rings[number] : -1;
  if (ring >= 0) {
    s.ring = min(uint(ring), p.rings - 1);
    s.recent_from = clamp(batch.recent_starts[number], max(s.keys - int(p.k_recent.capacity), 0), s.keys);
  }
  return s;
}

// A page of a sequence. `end`: its tokens, beyond which the table is not asked.
struct Pages {
  const device int* table;  // null: not in pages
  long codes, scales;       // bytes and numbers from one page to the next
  uint count;
  int end;

  uint at(uint index) const {
    return min(uint(table[index]), count - 1);
  }
};

// Where a token is written: a slot of a batch row, a page or a ring.
struct Slot {
  uint batch, slot;
  bool is_there;
};

// Of a number that counts the slots of all pages or rings, of `size` slots each; there are `count`.
inline Slot numbered_slot(long number, uint size, uint count) {
  bool is_there = number >= 0 && number < long(count);
  uint held = is_there ? uint(number) : 0;
  return {size > 0 ? held / size : 0, size > 0 ? held % size : 0, is_there};
}

#endif
