#include "item.h"

#include <algorithm>
#include <cstring>

namespace int4kv {

constexpr int kBlocks = kItemRows / kBlockRows;

struct Item::Memory {
  Workspace work;
  StoredTile k, v;
  QueryBlock blocks[kBlocks];
  Span spans[kItemRows];
};

Item::Memory& Item::memory() {
  static thread_local const std::unique_ptr<Memory> own = std::make_unique<Memory>();
  return *own;
}

Item::Item(const Attention& attention, int64_t number)
    : a_(attention), s_(attention.sequence_of_item(number)), memory_(memory()) {
  const int64_t i = number - s_.first_item, blocks = a_.blocks(s_.queries), tiles = s_.tiles();
  split_ = i % s_.splits;
  first_row_ = i / s_.splits % blocks * kItemRows;
  kv_head_ = i / s_.splits / blocks;
  rows_ = std::min(kItemRows, a_.group() * s_.queries - first_row_);
  from_ = std::min(s_.start + tiles * split_ / s_.splits * kTile, s_.end);
  to_ = std::min(s_.start + tiles * (split_ + 1) / s_.splits * kTile, s_.end);
}

void Item::load_query(int64_t row) {
  float* q = memory_.blocks[row / kBlockRows].q[row % kBlockRows];
  load_row(a_.q, s_.batch, head(row), s_.first_query + query(row), a_.head_dim, q);
  a_.k_rotation.apply(q, kv_head_, a_.head_dim);
  const float factor = a_.softcap > 0 ? a_.scale : a_.scale * kLog2e;
  for (int64_t c = 0; c < a_.head_dim; ++c) q[c] *= factor;
  const Span s = a_.span(s_, query(row));
  const auto share = [this](int64_t token) { return std::clamp(token, from_, to_); };
  memory_.spans[row] = {share(s.lo), share(s.sunk), share(s.exact), share(s.hi)};
}

// Which of the tile's tokens a query row sees, out of lo .. hi: bit i is token tile + i.
uint64_t Item::seen(int64_t row, int64_t tile, int64_t lo, int64_t hi) const {
  lo = std::max(lo - tile, int64_t{0});
  hi = std::min(hi - tile, int64_t{kTile});
  if (lo >= hi) return 0;
  const uint64_t range = ~uint64_t{0} >> (kTile - (hi - lo)) << lo;
  if (!a_.mask) return range;
  uint64_t allowed = 0;
  for (int64_t i = lo; i < hi; ++i) {
    allowed |= static_cast<uint64_t>(a_.mask->at<bool>(s_.batch, head(row), query(row), tile + i - s_.start)) << i;
  }
  return range & allowed;
}

// What is read next: plain values of this tile, which are walked through channel by channel, and where there are codes, the tile after it.
void Item::look_ahead(const Source& k, const Source& v, int64_t b, int64_t tile, int64_t last) {
  Ahead& ahead = memory_.work.ahead;
  ahead.count = 0;
  if (!v.scales) v.look_ahead(b, kv_head_, tile, memory_.work.tile.count, ahead);
  const int following = static_cast<int>(std::clamp<int64_t>(last - tile - kTile, 0, kTile));
  if (!k.scales && !v.scales) return;
  k.look_ahead(b, kv_head_, tile + kTile, following, ahead);
  v.look_ahead(b, kv_head_, tile + kTile, following, ahead);
}

// One source, its batch row b, over the tokens range(span) of every row.
template <typename Range>
void Item::read(const Source& k, const Source& v, int64_t b, Range range) {
  int64_t first = to_, last = from_;
  for (int64_t r = 0; r < rows_; ++r) {
    const auto [lo, hi] = range(memory_.spans[r]);
    if (lo < hi) first = std::min(first, lo), last = std::max(last, hi);
  }
  Workspace& work = memory_.work;
  work.tile.head_dim = static_cast<int>(a_.head_dim);
  for (int64_t t = first; t < last; t += kTile) {
    uint64_t any = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      const auto [lo, hi] = range(memory_.spans[r]);
      any |= memory_.blocks[r / kBlockRows].seen[r % kBlockRows] = seen(r, t, lo, hi);
    }
    if (any == 0) continue;
    work.tile.count = static_cast<int>(std::min<int64_t>(kTile, last - t));
    k.locate(b, kv_head_, t, work.tile.count, memory_.k);
    v.locate(b, kv_head_, t, work.tile.count, memory_.v);
    look_ahead(k, v, b, t, last);
    kernels().load_tile(memory_.k, memory_.v, work);
    for (int64_t r = 0; r < rows_; r += kBlockRows) kernels().attend_tile(work, memory_.blocks[r / kBlockRows]);
  }
}

void Item::run() {
  for (int64_t r = 0; r < rows_; ++r) load_query(r);
  for (int64_t r = 0; r < rows_; r += kBlockRows) {
    QueryBlock& block = memory_.blocks[r / kBlockRows];
    block.rows = static_cast<int>(std::min<int64_t>(kBlockRows, rows_ - r));
    block.head_dim = static_cast<int>(a_.head_dim);
    block.softcap = a_.softcap;
    kernels().start_block(block);
  }
  if (a_.k_sink) read(*a_.k_sink, *a_.v_sink, s_.cache, [](const Span& s) { return std::pair(s.lo, s.sunk); });
  read(a_.k, a_.v, s_.cache, [](const Span& s) { return std::pair(s.sunk, s.exact); });
  if (a_.k_recent) read(*a_.k_recent, *a_.v_recent, s_.ring, [](const Span& s) { return std::pair(s.exact, s.hi); });
  store();
  for (int64_t r = 0; s_.splits == 1 && r < rows_; ++r) a_.merge(s_, head(r) * s_.queries + query(r));
}

void Item::store() {
  float totals[kBlockRows];
  for (int64_t r = 0; r < rows_; ++r) {
    QueryBlock& block = memory_.blocks[r / kBlockRows];
    const int64_t i = r % kBlockRows;
    if (i == 0) kernels().finish_block(block, static_cast<int>(std::max<int64_t>(a_.v.groups, 1)), totals);
    float* to = a_.partial_of(s_, split_, head(r) * s_.queries + query(r));
    std::memcpy(to, block.o[i], a_.head_dim * sizeof(float));
    to[a_.head_dim] = block.maximum[i];
    to[a_.head_dim + 1] = totals[i];
  }
}

} // namespace int4kv
