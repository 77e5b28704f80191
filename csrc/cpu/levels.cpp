#include <algorithm>
#include <array>
#include <initializer_list>

#include "tile.h"

namespace int4kv {
namespace {

Levels lloyd(std::initializer_list<int> upper) {
  Levels levels{};
  const int half = static_cast<int>(upper.size());
  for (int i = 0; i < half; ++i) {
    levels.biased[half + i] = static_cast<uint8_t>(kBias + upper.begin()[i]);
    levels.biased[half - 1 - i] = static_cast<uint8_t>(kBias - upper.begin()[i]);
  }
  return levels;
}

// level = code - n / 2 + offset
Levels even(int bits, float offset) {
  Levels levels{};
  for (int code = 0; bits < 8 && code < 1 << bits; ++code) levels.biased[code] = static_cast<uint8_t>(kBias + code - (1 << (bits - 1)));
  levels.offset = offset;
  return levels;
}

Levels make(int bits, int codebook) {
  if (codebook == INT4KV_ABSMAX) return even(bits, 0.0f);
  if (codebook == INT4KV_ASYMMETRIC) return even(bits, static_cast<float>(1 << (bits - 1)));
  if (codebook == INT4KV_UNIFORM || bits == 8) return even(bits, 0.5f);
  return bits == 3 ? lloyd(INT4KV_LLOYD_3) : bits == 4 ? lloyd(INT4KV_LLOYD_4) : lloyd(INT4KV_LLOYD_5);
}

constexpr int kCodebooks = 4, kMaxBits = 8;

} // namespace

const Levels& levels_of(int bits, int codebook) {
  static const auto all = [] {
    std::array<Levels, (kMaxBits + 1) * kCodebooks> made{};
    for (int width : {3, 4, 5, 8}) {
      for (int book = 0; book < kCodebooks; ++book) made[width * kCodebooks + book] = make(width, book);
    }
    return made;
  }();
  return all[bits * kCodebooks + codebook];
}

} // namespace int4kv
