// The hot loops, compiled once per instruction set (kernels_*.cpp) from the same text (kernels/) over the words of simd/. Plain C++,
// no torch, so that each set can be compiled and run alone; dispatch.cpp picks one when the library is loaded.
#pragma once
#include <cstdint>

#include "tile.h"

namespace int4kv {

// How a row becomes codes: ../format.h. Its scales, fp16, lie side by side: one per group, for `asymmetric` a scale and a minimum.
struct Packing {
  int64_t head_dim, group_size;
  int bits, codebook;
};

constexpr int kRowsTogether = 8, kMostGroups = kRowsTogether * INT4KV_MAX_HEAD_DIM / INT4KV_UNIT;

struct Kernels {
  const char* name;  // avx512, avx2, neon or portable

  // A row of head_dim numbers, `stride` bytes from one to the next, to float32 minus the centre, and from float32 plus the centre,
  // to nearest even; a NaN becomes 0x7e00 in fp16, 0x7fc0 in bf16. centre: [head_dim], or null.
  void (*load_row)(const char* from, int64_t stride, Number type, int64_t head_dim, const float* centre, float* row);
  void (*store_row)(const float* row, const float* centre, int64_t head_dim, Number type, int64_t stride, char* to);

  // row = H (signs * row) / sqrt(block) and row = signs * (H row / sqrt(block)), in blocks of 16 to 256 channels: a power of two.
  void (*rotate)(float* row, int64_t head_dim, int64_t block, const float* signs);
  void (*unrotate)(float* row, int64_t head_dim, int64_t block, const float* signs);

  // `count` rows, `apart` bytes from one to the next, as load_row and then rotate do it, to rows [count, head_dim].
  void (*load_rotated)(
      const char* from, int64_t apart, int64_t stride, Number type, int64_t count, int64_t head_dim, const float* centre, int64_t block,
      const float* signs, float* rows);

  // row = matrix * row and row = matrix^T * row, matrix [head_dim, head_dim]; both add channel after channel.
  void (*multiply)(float* row, int64_t head_dim, const float* matrix);
  void (*multiply_transposed)(float* row, int64_t head_dim, const float* matrix);

  // Centred, rotated rows [count, head_dim], at most kRowsTogether, to packed codes, codes[i] those of row i, and scales
  // [count, scales of a row]; a row from its codes and scales.
  void (*encode)(const float* rows, int64_t count, const Packing& packing, uint8_t* const* codes, uint16_t* scales);
  void (*decode)(const uint8_t* codes, const uint16_t* scales, const Packing& packing, float* row);

  // attend: a tile from where it is stored; a block of query rows before its first tile, over one tile, and after its last one.
  void (*load_tile)(const StoredTile& k, const StoredTile& v, Workspace& work);
  void (*start_block)(QueryBlock& block);
  void (*attend_tile)(Workspace& work, QueryBlock& block);
  void (*finish_block)(QueryBlock& block, int groups, float* totals);
};

// In use: the best that this processor has, or the one that the environment variable INT4KV_CPU or use_kernels() names.
const Kernels& kernels();

// Null-terminated, best first: those compiled in that this processor can run.
const Kernels* const* available_kernels();

// Throws std::invalid_argument when `name` is not available.
void use_kernels(const char* name);

} // namespace int4kv
