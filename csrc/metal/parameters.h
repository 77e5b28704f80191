// What the host hands to the kernels: plain C, read by Objective-C++ and by Metal alike.
//
// Tokens are counted from the first one that attend may read (start), slots from the buffer's begin; both fit 32 bits. A ring
// slot is first_slot + token, minus capacity once it is beyond: the host has taken the remainder of the absolute position.
#ifndef INT4KV_METAL_PARAMETERS_H
#define INT4KV_METAL_PARAMETERS_H

#ifdef __METAL_VERSION__
typedef long int4kv_stride;
#else
#include <cstdint>
typedef int64_t int4kv_stride;
#endif

// Element types of a tensor that a kernel reads or writes through rows.h.
#define INT4KV_FLOAT32 0u
#define INT4KV_FLOAT16 1u
#define INT4KV_BFLOAT16 2u

#define INT4KV_NO_ROTATION 0u
#define INT4KV_HADAMARD 1u  // signs [head_dim], then butterflies within blocks of channels
#define INT4KV_DENSE 2u     // a matrix [head_dim, head_dim] per head

// The function constants of the attention kernels: bits of a code, 16 for plain rows, and a codebook of format.h.
#define INT4KV_K_BITS_CONSTANT 0
#define INT4KV_V_BITS_CONSTANT 1
#define INT4KV_CODEBOOK_CONSTANT 2
#define INT4KV_PAGED_CONSTANT 3  // of quantize too: 1 for the pages of many sequences
#define INT4KV_DECODE_CONSTANT 4  // of attend_matrix and merge: 1 for one query token a sequence, without mask, softcap, sinks and dense rotations
#define INT4KV_PLAIN_BITS 16u

#define INT4KV_SIMD 32u
#ifndef INT4KV_SIMDGROUPS
#define INT4KV_SIMDGROUPS 4u  // simdgroups of a threadgroup that share the keys of one block of rows; CUDA has threadgroups of more
#endif
#define INT4KV_COLUMNS 8u     // query rows that attend_matrix serves at once: the width of a fragment
#define INT4KV_PAIR 2u        // query rows that attend_simd serves at once at most
#define INT4KV_QUANTIZE_SIMDGROUPS 8u  // simdgroups of a threadgroup that quantize a row each
#ifndef INT4KV_MERGE_SIMDGROUPS
#define INT4KV_MERGE_SIMDGROUPS 8u  // simdgroups that join the splits of one query row
#endif

// A tensor [batch, head, token, channel]: strides in elements. A stride of 0 broadcasts. Of pages and rings, batch counts these.
struct Int4kvRows {
  int4kv_stride batch, head, token, channel;
  unsigned type;
};

// Codes with their scales, or plain rows (groups = 0), in a ring of `capacity` slots.
struct Int4kvStored {
  struct Int4kvRows codes, scales;
  unsigned groups, bits, codebook, capacity, first_slot;
  unsigned aligned;  // rows follow each other and start at 16 bytes or what a row leaves of them, so do the scales; else 0
};

struct Int4kvRotation {
  unsigned kind, block;  // of a Hadamard one: the channels of a block, a power of two, ...
  float norm;            // ... and 1 / sqrt(block)
  int4kv_stride head;    // of a dense one: elements between the matrices of two heads
};

// One tensor on its way into the cache: K or V.
struct Int4kvQuantizeSide {
  struct Int4kvRows x, centre, recent;
  struct Int4kvStored stored;
  struct Int4kvRotation rotation;
  unsigned recent_rows, recent_first_slot;  // recent_rows 0: none
  unsigned has_centre;
};

struct Int4kvQuantize {
  struct Int4kvQuantizeSide sides[2];  // K, V
  unsigned both, rows, heads, tokens;  // both: 1 for K and V. rows = batch * heads * tokens of one side: those of K come first
  unsigned slots, recent_slots;  // paged: of all pages, of all rings
};

struct Int4kvDequantize {
  struct Int4kvStored stored;
  struct Int4kvRows out, centre;
  struct Int4kvRotation rotation;
  unsigned heads, tokens, has_centre;
};

// How far tokens are split where there are threadgroups enough.
struct Int4kvSplitting {
  int whole;  // up to so many are not
  int fine;   // the least tokens of a split while there are few: twice as many from 16 splits on, ...
  int round;  // ... and from 32 on what the simdgroups of a threadgroup take at once
  int more;   // beside those: 1 for the exact rows, which have a split of their own
};

inline int int4kv_max(int a, int b) {
  return a > b ? a : b;
}

inline int int4kv_min(int a, int b) {
  return a < b ? a : b;
}

inline int int4kv_splits(int tokens, int whole, int fine, int round, int more) {
  if (tokens <= whole) return 1;
  return int4kv_max(int4kv_max(int4kv_min(tokens / fine, 16), int4kv_min(tokens / (2 * fine), 32)), tokens / round + more);
}

struct Int4kvAttend {
  struct Int4kvRows q, out, mask, v_centre;
  struct Int4kvStored k, v, k_sink, v_sink, k_recent, v_recent;  // of the recent ones, first_slot is that of token recent_from
  struct Int4kvRotation k_rotation, v_rotation;
  unsigned heads, kv_heads, group, queries, head_dim, keys, blocks, splits;
  int sinks;                       // tokens [0, sinks) have plain rows
  int recent_from, recent_window;  // recent_from = keys: no recent rows
  int window;                      // 0: none
  unsigned causal, has_mask, has_v_centre;
  float scale, softcap;  // softcap 0: none, and scale has log2(e) in it
  // Paged: q has `queries` rows and a sequence at most `keys` tokens, in a row of `table_width` entries of the block table.
  unsigned pages, rings, table_width;
  struct Int4kvSplitting splitting;
};

#endif
