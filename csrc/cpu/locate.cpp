// Where a tile's tokens lie in the cache, which is a ring.
#include <algorithm>
#include <cstring>

#include "rows.h"

namespace int4kv {
namespace {

// Pointers to `count` tokens from slot `slot` on, around the end of the ring; those behind them repeat the last.
void point(const Rows& rows, int64_t b, int64_t h, int64_t slot, int count, const uint8_t** to) {
  const auto* base = reinterpret_cast<const uint8_t*>(rows.row(b, h, 0));
  const int before_end = static_cast<int>(std::min<int64_t>(count, rows.capacity - slot));
  for (int i = 0; i < before_end; ++i) to[i] = base + (slot + i) * rows.token;
  for (int i = before_end; i < count; ++i) to[i] = base + (i - before_end) * rows.token;
  for (int i = count; i < kTile; ++i) to[i] = to[count - 1];
}

// Number `index` of each of those tokens.
void gather(const Rows& scales, int64_t b, int64_t h, int64_t slot, int count, int64_t index, uint16_t* to) {
  const char* base = scales.row(b, h, 0) + index * scales.channel;
  const int before_end = static_cast<int>(std::min<int64_t>(count, scales.capacity - slot));
  if (scales.token == 2 && before_end == kTile) {
    std::memcpy(to, base + 2 * slot, 2 * kTile);
    return;
  }
  for (int i = 0; i < kTile; ++i) {
    const int token = std::min(i, count - 1);
    std::memcpy(to + i, base + (token < before_end ? slot + token : token - before_end) * scales.token, 2);
  }
}

} // namespace

void Source::locate(int64_t b, int64_t h, int64_t first, int count, StoredTile& tile) const {
  const int64_t slot = first % codes.capacity, each = scales_per_group(codebook);
  point(codes, b, h, slot, count, tile.rows);
  for (int64_t g = 0; scales && g < groups; ++g) {
    gather(*scales, b, h, slot, count, each * g, tile.scales[g]);
    if (each > 1) gather(*scales, b, h, slot, count, each * g + 1, tile.minima[g]);
  }
  tile.plain = !scales;
  tile.type = codes.number();
  tile.ahead = kTile * codes.token;
  tile.channel_stride = codes.channel;
  tile.bits = static_cast<int>(bits);
  tile.codebook = codebook;
  tile.groups = static_cast<int>(groups);
}

} // namespace int4kv
