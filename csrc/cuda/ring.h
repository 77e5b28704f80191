// Tiles on their way: every simdgroup has a ring of tiles in shared memory, which asynchronous copies fill ahead of it.
//
// A row of codes lies in the ring as in memory, but the 16-byte pieces of a line of 128 bytes are permuted by the number of the line
// among those of eight rows: what eight lanes read at once, of one row or of eight, is then on different banks.
#ifndef INT4KV_CUDA_RING_H
#define INT4KV_CUDA_RING_H

#include "queries.h"

constexpr uint row_bytes(int head_dim, uint bits) {
  return uint(head_dim) * bits / 8;
}

constexpr bool is_permuted(uint bytes) {
  return bytes >= 32 && (bytes & (bytes - 1)) == 0;
}

constexpr uint ring_stride(uint bytes) {
  return (bytes + 15) / 16 * 16;
}

// Where byte x of a tile lies.
constexpr uint permuted(uint bytes, uint x) {
  return is_permuted(bytes) ? x ^ (x >> 3 & (bytes < 128 ? bytes - 16 : 0x70)) : x;
}

// The same of x = lane + fixed, which have no bit in common, from permuted(bytes, lane), which stays in a register.
inline uint ring_offset(uint bytes, uint lane, uint fixed) {
  return is_permuted(bytes) ? (lane ^ (permuted(bytes, fixed) & 0x7f)) + (fixed & ~0x7fu) : lane + fixed;
}

// Computed once, not again where it is used.
inline uint in_register(uint x) {
  asm("" : "+r"(x));
  return x;
}

constexpr bool is_large = INT4KV_SIMDGROUPS > 4;

// Blocks of 8 tokens of a tile. With twice as many at head_dim 64 a token takes as many instructions.
constexpr int tile_blocks(int head_dim) {
  return head_dim < 256 || is_large ? 4 : 2;
}

// What plain rows take, in tokens of codes (share_of): a simdgroup that has some is later by so many of its tiles. Those of Lloyd-Max take
// instructions, which others then have. Measured on an H200.
template <int D, int B>
constexpr int plain_cost() {
  return (codebook == INT4KV_LLOYD ? 0 : D == 64 ? 4 : 2) * INT4KV_SIMDGROUPS * 8 * B;
}

#ifndef INT4KV_SHARED_BYTES
#define INT4KV_SHARED_BYTES (48 * 1024)
#endif

constexpr uint kSharedBytes = INT4KV_SHARED_BYTES;
constexpr uint kMostStages = is_large ? 2 : 4;  // more of 16 simdgroups keep them waiting for room to ask in

// Where the parts of a simdgroup's ring begin, in bytes.
template <int D, int B>
struct Ring {
  static constexpr uint keys = 8 * B * ring_stride(row_bytes(D, k_bits));
  static constexpr uint values = 8 * B * ring_stride(row_bytes(D, v_bits));
  static constexpr uint scales = 8 * B * sizeof(half);
  static constexpr uint stage = keys + values + 2 * scales;
  static constexpr uint joined = INT4KV_COLUMNS * (D + 4) * sizeof(float);  // what join_simdgroups needs of the same memory
  static constexpr uint others = INT4KV_COLUMNS * (D + 12 + 2 * INT4KV_SIMDGROUPS) * sizeof(float) + 16 * D + 512;
  static constexpr uint room = (kSharedBytes - others) / INT4KV_SIMDGROUPS / 128 * 128 / stage;
  static constexpr uint stages = room < kMostStages ? room : kMostStages;
  static constexpr uint bytes = ((stages * stage > joined ? stages * stage : joined) + 127) / 128 * 128;
  static_assert(stages > 0 && others + INT4KV_SIMDGROUPS * bytes <= kSharedBytes, "a tile of each simdgroup fits shared memory");
};

// Threadgroup memory, in floats: Q, and a ring for each simdgroup.
template <int D, int B>
constexpr uint scratch_size() {
  return 4 * D + INT4KV_SIMDGROUPS * Ring<D, B>::bytes / 4;
}

template <int D, int B, typename T>
inline T* scratch_of(T* scratch, uint simdgroup) {
  return scratch + 4 * D + simdgroup * (Ring<D, B>::bytes / 4);
}

inline uint shared_address(const void* x) {
  return uint(__cvta_generic_to_shared(x));
}

template <uint bytes>
inline void copy_piece(uint to, const uchar* from) {
  if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" : : "r"(to), "l"(from), "n"(bytes) : "memory");
}

inline void end_group() {
  asm volatile("cp.async.commit_group;" : : : "memory");
}

// Waits until all but the newest `left` groups are there, for every lane.
template <uint left>
inline void await_groups() {
  asm volatile("cp.async.wait_group %0;" : : "n"(left) : "memory");
  __syncwarp();
}

constexpr uint piece_bytes(int head_dim, uint bits) {
  return row_bytes(head_dim, bits) % 16 == 0 ? 16 : 8;
}

// Where piece n of a tile lies, before it is permuted.
template <int D, uint bits>
constexpr uint place_of_piece(uint n) {
  constexpr uint per_row = row_bytes(D, bits) / piece_bytes(D, bits);
  return n / per_row * ring_stride(row_bytes(D, bits)) + n % per_row * piece_bytes(D, bits);
}

// A tile's rows that lie together, `from` being the lane's first piece.
template <int D, int B, uint bits>
inline void copy_rows(const uchar* from, Place at, uint to, uint lane_offset) {
  constexpr uint row = row_bytes(D, bits), piece = piece_bytes(D, bits), pieces = 8 * B * row / piece;
#pragma unroll
  for (uint i = 0; i < pieces; i += INT4KV_SIMD) {
    uint n = i + at.lane, offset = place_of_piece<D, bits>(n);
    if (is_permuted(row)) offset = ring_offset(row, lane_offset, place_of_piece<D, bits>(i));
    if (pieces % INT4KV_SIMD == 0 || n < pieces) copy_piece<piece>(to + offset, from + i * piece);
  }
}

// Rows wherever they are; tokens from `last` on repeat the one before it.
template <int D, int B, uint bits>
__noinline__ void copy_scattered_rows(Source source, int tile, int last, uint lane, uint to) {
  constexpr uint row = row_bytes(D, bits), piece = piece_bytes(D, bits), per_row = row / piece;
#pragma unroll 1
  for (uint n = lane; n < 8 * B * per_row; n += INT4KV_SIMD) {
    const uchar* from = source.row(min(tile + int(n / per_row), last - 1)) + n % per_row * piece;
    copy_piece<piece>(to + permuted(row, place_of_piece<D, bits>(n)), from);
  }
}

// Where the scales of tokens 2 n and 2 n + 1 of a tile lie: those of a lane together.
template <int B>
constexpr uint place_of_scales(uint n) {
  return 4 * (n % 4 * B + n / 4);
}

template <int B>
__noinline__ void copy_scattered_scales(Source source, int tile, int last, uint lane, uint to) {
  for (uint n = lane; n < 8 * B; n += INT4KV_SIMD) {
    half scale = half(source.scale(min(tile + int(n), last - 1), 0));
    asm volatile("st.shared.b16 [%0], %1;" : : "r"(to + place_of_scales<B>(n / 2) + n % 2 * 2), "h"(scale.bits) : "memory");
  }
}

// Tiles up to the one that begins at `until` lie together in memory: the places that token 0 would have, of the lane's pieces.
struct Run {
  const uchar *k, *v;
  const half* scales;
  int until;
};

// The run that a tile begins, of tiles before `last`; none when it does not lie together itself.
template <int D, int B>
inline Run find_run(const Source& k, const Source& v, int tile, int last, Place at) {
  constexpr uint pairs = Ring<D, B>::scales / 4;
  if (!k.is_together(tile, 8 * B) || !v.is_together(tile, 8 * B)) return {nullptr, nullptr, nullptr, tile - 1};
  constexpr uint k_row = row_bytes(D, k_bits), v_row = row_bytes(D, v_bits);
  Run run;
  run.k = k.aligned_row(tile, k_row) - long(tile) * k_row + at.lane * piece_bytes(D, k_bits);
  run.v = v.aligned_row(tile, v_row) - long(tile) * v_row + at.lane * piece_bytes(D, v_bits);
  run.scales = (at.lane < pairs ? k.aligned_scale(tile) : v.aligned_scale(tile) - 2 * pairs) + 2 * at.lane - tile;
  run.until = min(tile + int(min(k.capacity - k.slot(tile), v.capacity - v.slot(tile))) - 8 * B, last - 1);
  return run;
}

template <int D, int B>
__noinline__ Run find_next_run(Source k, Source v, int tile, int last, Place at) {
  return find_run<D, B>(k, v, tile, last, at);
}

// The ring of a simdgroup, at the stage of the tile at hand, and the lane's place in its parts.
template <int D, int B>
struct Tiles {
  const threadgroup uchar* stage;
  uint number;  // of that stage; of two, not counted
  int step;     // of two stages, to the other one
  uint copied_key, copied_value, copied_scales, key, value;
  Run run;

  const threadgroup uchar* values() const {
    return stage + Ring<D, B>::keys;
  }
  const threadgroup uchar* scales() const {
    return stage + Ring<D, B>::keys + Ring<D, B>::values;
  }
};

// Asks for a tile, as one group of copies, which is empty from `last` on.
template <int D, int B>
inline void request_tile(Tiles<D, B>& tiles, const threadgroup uchar* stage, const Source& k, const Source& v, int tile, int last, Place at) {
  const uint to = shared_address(stage), values = to + Ring<D, B>::keys, scales = values + Ring<D, B>::values;
  if (tile > tiles.run.until && tile < last) tiles.run = find_next_run<D, B>(k, v, tile, last, at);
  if (tile <= tiles.run.until) {
    copy_rows<D, B, k_bits>(tiles.run.k + long(tile) * row_bytes(D, k_bits), at, to, tiles.copied_key);
    copy_rows<D, B, v_bits>(tiles.run.v + long(tile) * row_bytes(D, v_bits), at, values, tiles.copied_value);
    if (B == 4 || at.lane < 8 * B) copy_piece<4>(to + tiles.copied_scales, (const uchar*)(tiles.run.scales + tile));
  } else if (tile < last) {
    copy_scattered_rows<D, B, k_bits>(k, tile, last, at.lane, to);
    copy_scattered_rows<D, B, v_bits>(v, tile, last, at.lane, values);
    copy_scattered_scales<B>(k, tile, last, at.lane, scales);
    copy_scattered_scales<B>(v, tile, last, at.lane, scales + Ring<D, B>::scales);
  }
  end_group();
}

// Those of a pass, before any is asked for.
template <int D, int B>
inline Tiles<D, B> tiles_of(const Source& k, const Source& v, int first, int last, Place at, threadgroup float* scratch) {
  constexpr uint k_row = row_bytes(D, k_bits), v_row = row_bytes(D, v_bits);
  Tiles<D, B> tiles = {(const threadgroup uchar*)scratch, 0, int(Ring<D, B>::stage)};
  tiles.copied_key = in_register(permuted(k_row, place_of_piece<D, k_bits>(at.lane)));
  tiles.copied_value = k_bits == v_bits ? tiles.copied_key : in_register(permuted(v_row, place_of_piece<D, v_bits>(at.lane)));
  tiles.copied_scales = in_register(
      Ring<D, B>::stage - 2 * Ring<D, B>::scales + at.lane / (4 * B) * Ring<D, B>::scales + place_of_scales<B>(at.lane % (4 * B)));
  tiles.key = in_register(permuted(k_row, at.column_ * ring_stride(k_row) + at.quarter * (D / 8)));
  tiles.value = in_register(permuted(v_row, D == 64 ? (at.lane / 16 * 8 + at.lane % 8) * ring_stride(v_row) + at.lane / 8 % 2 * 16
                                                    : at.lane % 8 * ring_stride(v_row) + at.lane / 8 * 16));
  tiles.run.until = first - 1;
  if (first < last) tiles.run = find_run<D, B>(k, v, first, last, at);
  return tiles;
}

// Asks for the first tile of a pass.
template <int D, int B>
inline void first_tile(Tiles<D, B>& tiles, const Source& k, const Source& v, int first, int last, Place at) {
  request_tile<D, B>(tiles, tiles.stage, k, v, first, last, at);
}

// Asks for those that come after it, `stride` tokens apart: later, since a warp waits to ask when many have asked.
template <int D, int B>
inline void further_tiles(Tiles<D, B>& tiles, const Source& k, const Source& v, int first, int last, int stride, Place at) {
#pragma unroll 1
  for (uint s = 1; s < Ring<D, B>::stages; s++) {
    request_tile<D, B>(tiles, tiles.stage + s * Ring<D, B>::stage, k, v, first + int(s) * stride, last, at);
  }
}

// Of a lane's N tokens of a tile, the bits of two in a register as they were loaded: taken apart where they are used.
template <int N>
struct alignas(2 * N) Scales {
  uint bits[N / 2];

  half2 pair(int b) const {
    return as_type<half2>(bits[b]);
  }
};

template <int N>
inline float scale_of(const Scales<N>& scales, int i) {
  half2 pair = scales.pair(i / 2);
  return float(i % 2 ? pair.y : pair.x);
}

template <int N>
inline void set_scale(Scales<N>& scales, int i, float x) {
  half2 pair = scales.pair(i / 2);
  scales.bits[i / 2] = as_type<uint>(i % 2 ? half2(pair.x, half(x)) : half2(half(x), pair.y));
}

template <int D, int B>
inline void read_scales(const threadgroup uchar* of_tile, Place at, Scales<2 * B>& scales) {
  scales = *(const threadgroup Scales<2 * B>*)(of_tile + at.quarter * sizeof scales);
}

// Waits for the tile at hand.
template <int D, int B>
inline void open_tile(
    Tiles<D, B>& tiles, const Source&, const Source&, int, int, Place at, Scales<2 * B>& k_scale, Scales<2 * B>& v_scale) {
  await_groups<Ring<D, B>::stages - 1>();
  read_scales<D, B>(tiles.scales(), at, k_scale);
  read_scales<D, B>(tiles.scales() + Ring<D, B>::scales, at, v_scale);
}

template <int D, int B>
inline void next_keys(Tiles<D, B>&, const Source&, const Source&, int, int, int, Place) {}

// The tile at hand has been used: asks for the one that comes to its place, and goes on to the next.
template <int D, int B>
inline void next_tile(Tiles<D, B>& tiles, const Source& k, const Source& v, int tile, int last, int stride, Place at) {
  __syncwarp();
  request_tile<D, B>(tiles, tiles.stage, k, v, tile + int(Ring<D, B>::stages) * stride, last, at);
  if (Ring<D, B>::stages == 2) {
    tiles.stage += tiles.step;
    tiles.step = -tiles.step;
    return;
  }
  bool wraps = ++tiles.number == Ring<D, B>::stages;
  tiles.stage += wraps ? -int((Ring<D, B>::stages - 1) * Ring<D, B>::stage) : int(Ring<D, B>::stage);
  if (wraps) tiles.number = 0;
}

#endif
