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

// Rows that touch are one span.
void add_spans(const Rows& rows, const Source::Run& run, int64_t h, int count, int64_t bytes, Ahead& ahead) {
  const char* first = rows.row(run.batch, h, run.slot);
  if (rows.token == bytes) bytes *= count, count = 1;
  for (int i = 0; i < count; ++i) ahead.spans[ahead.count++] = {first + i * rows.token, first + i * rows.token + bytes};
}

template <typename T>
void repeat_last(T* of, int count) {
  for (int i = count; i < kTile; ++i) of[i] = of[count - 1];
}

} // namespace

void Source::look_ahead(int64_t b, int64_t h, int64_t first, int count, Ahead& ahead) const {
  for (int at = 0, n; at < count; at += n) {
    const Run here = run(b, first + at);
    n = static_cast<int>(std::min<int64_t>(count - at, here.count));
    add_spans(codes, here, h, n, row_bytes, ahead);
    if (scales) add_spans(*scales, here, h, n, scales->element * groups * scales_per_group(codebook), ahead);
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
  tile.channel_stride = codes.channel;
  tile.bits = static_cast<int>(bits);
  tile.codebook = codebook;
  tile.groups = static_cast<int>(groups);
}

} // namespace int4kv
