// The hot loops, compiled once per instruction set (kernels_*.cpp) from the same text (kernels/) over the words of simd/. Plain C++,
// no torch, so that each set can be compiled and run alone; dispatch.cpp picks one when the library is loaded.
#pragma once
#include <cstdint>

#include "tile.h"

namespace int4kv {

struct Kernels {
  const char* name;  // avx512, avx2, neon or portable

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
