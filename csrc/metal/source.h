// Where tokens come from, for one sequence and KV head: packed codes with scales, or plain rows, in a ring or in pages.
#ifndef INT4KV_METAL_SOURCE_H
#define INT4KV_METAL_SOURCE_H

#include "codes.h"
#include "pages.h"

template <int N, typename T>
inline void load_steps(const device T* from, long step, thread float* x) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = float(from[i * step]);
}

struct Source {
  const device uchar* codes;
  const device half* scales;
  long token_bytes, step, scale_token, scale_group;
  uint groups, capacity, first_slot, type;
  Coding coding;
  int origin;  // the token that is in first_slot
  bool aligned;
  Pages pages;  // each of `capacity` slots

  bool is_paged() const {
    return paged && pages.table;
  }
  // In the ring, or in the token's page.
  uint slot(int token) const {
    return is_paged() ? uint(token) % capacity : slot_of(first_slot, uint(token - origin), capacity);
  }
  long page(int token) const {
    return is_paged() ? long(pages.at(uint(token) / capacity)) : 0;
  }
  // Whether `count` aligned rows from `token` on lie one after the other, from a multiple of their number on: beyond the end of a ring
  // tiles may begin at other slots.
  bool is_together(int token, uint count) const {
    return aligned && (!is_paged() || token < pages.end) && slot(token) % count == 0 && slot(token) + count <= capacity;
  }
  const device uchar* row(int token) const {
    return codes + page(token) * pages.codes + long(slot(token)) * token_bytes;
  }
  // Of aligned rows, which have so many bytes each; and their scales.
  const device uchar* aligned_row(int token, uint bytes) const {
    return codes + page(token) * pages.codes + long(slot(token)) * bytes;
  }
  const device half* aligned_scale(int token) const {
    return scales + page(token) * pages.scales + slot(token);
  }
  float scale(int token, uint group) const {
    return float(scales[page(token) * pages.scales + long(slot(token)) * scale_token + long(group) * scale_group]);
  }
  // Of a plain row.
  float channel(const device uchar* row, uint c) const {
    return load(row, type, long(c) * step);
  }
  // N of them in a row; the type is asked for once, so that all loads are on their way together.
  template <int N>
  void channels(const device uchar* row, uint c, thread float* x) const {
    long first = long(c) * step;
    if (type == INT4KV_FLOAT32) load_steps<N>((const device float*)row + first, step, x);
    else if (type == INT4KV_FLOAT16) load_steps<N>((const device half*)row + first, step, x);
    else load_steps<N>((const device bfloat*)row + first, step, x);
  }
};

inline long element_size(constant Int4kvStored& stored) {
  return stored.groups > 0 ? 1 : stored.codes.type == INT4KV_FLOAT32 ? 4 : 2;
}

inline Source source_of(
    constant Int4kvStored& stored, Coding coding, const device void* codes, const device half* scales, uint batch, uint head, int origin) {
  Source s;
  s.coding = coding;
  long size = element_size(stored);
  s.codes = kept((const device uchar*)codes + row_offset(stored.codes, batch, head, 0) * size);
  s.token_bytes = stored.codes.token * size;
  s.step = stored.codes.channel;
  s.type = stored.codes.type;
  s.scales = kept(scales + row_offset(stored.scales, batch, head, 0));
  s.scale_token = stored.scales.token;
  s.scale_group = stored.scales.channel;
  s.groups = stored.groups;
  s.capacity = stored.capacity;
  s.first_slot = stored.first_slot;
  s.origin = origin;
  s.aligned = stored.aligned != 0;
  s.pages = {nullptr, 0, 0, 0, 0};
  return s;
}

// The codes of a sequence.
inline Source code_source(
    constant Int4kvAttend& p, constant Int4kvStored& stored, Coding coding, const device void* codes, const device half* scales,
    thread const Sequence& sequence, uint head) {
  Source s = source_of(stored, coding, codes, scales, sequence.batch, head, 0);
  if (paged) s.pages = {sequence.table, stored.codes.batch * element_size(stored), stored.scales.batch, p.pages, sequence.keys};
  return s;
}

// Of rows that stand beside the codes: the first tokens or the newest, which a ring has from token `origin` on.
inline Source plain_source(constant Int4kvStored& stored, const device void* rows, uint batch, uint head, int origin) {
  Source s = source_of(stored, {INT4KV_PLAIN_BITS, INT4KV_UNIFORM, 0.0f}, rows, (const device half*)rows, batch, head, origin);
  if (paged && stored.capacity > 0) s.first_slot = uint(origin) % stored.capacity;
  return s;
}

#endif
