// Where a tile's tokens lie in the cache: a ring, which may end inside a tile, or pages.
#include <algorithm>
#include <cstring>

#include "rows.h"

namespace int4kv {
namespace {

void point(const Rows& rows, const Source::Run& run, int64_t h, int count, const uint8_t** to) {
  const auto* first = reinterpret_cast<const uint8_t*>(rows.row(run.batch, h, run.slot));
  for (int i = 0; i < count; ++i) to[i] = first + i * rows.token;
}

// Number `index` of each token.
void gather(const Rows& scales, const Source::Run& run, int64_t h, int count, int64_t index, uint16_t* to) {
  const char* first = scales.row(run.batch, h, run.slot) + index * scales.channel;
  if (scales.token != 2) {
    for (int i = 0; i < count; ++i) std::memcpy(to + i, first + i * scales.token, 2);
  } else if (count == kTile) {
    std::memcpy(to, first, 2 * kTile);
  } else {
    std::memcpy(to, first, 2 * count);
  }
}

template <typename T>
void repeat_last(T* of, int count) {
  for (int i = count; i < kTile; ++i) of[i] = of[count - 1];
}

} // namespace

// Asks for a tile of pages ahead, row by row: the pages of two tiles are not the same distance apart.
void Source::fetch(int64_t b, int64_t h, int64_t first) const {
  const int64_t end = std::min(first + kTile, table->width * codes.capacity), bytes = scales ? row_bytes : 0;
  for (int64_t at = first; at < end;) {
    const Run here = run(b, at);
    const int64_t n = std::min(end - at, here.count);
    const char* row = codes.row(here.batch, h, here.slot);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + i * codes.token + byte);
    }
    at += n;
  }
}

void Source::locate(int64_t b, int64_t h, int64_t first, int count, StoredTile& tile) const {
  const int64_t each = scales_per_group(codebook);
  for (int at = 0, n; at < count; at += n) {
    const Run here = run(b, first + at);
    n = static_cast<int>(std::min<int64_t>(count - at, here.count));
    point(codes, here, h, n, tile.rows + at);
    for (int64_t g = 0; scales && g < groups; ++g) {
      gather(*scales, here, h, n, each * g, tile.scales[g] + at);
      if (each > 1) gather(*scales, here, h, n, each * g + 1, tile.minima[g] + at);
    }
  }
  repeat_last(tile.rows, count);
  for (int64_t g = 0; scales && g < groups; ++g) {
    repeat_last(tile.scales[g], count);
    if (each > 1) repeat_last(tile.minima[g], count);
  }
  tile.plain = !scales;
  tile.type = codes.number();
  tile.ahead = table ? 0 : kTile * codes.token;
  if (table) fetch(b, h, first + kTile);
  tile.channel_stride = codes.channel;
  tile.bits = static_cast<int>(bits);
  tile.codebook = codebook;
  tile.groups = static_cast<int>(groups);
}

} // namespace int4kv
