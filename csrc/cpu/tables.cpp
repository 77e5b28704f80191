#include "tables.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

namespace int4kv {
namespace {

int64_t at(const at::Tensor& x, int64_t i) {
  return x.const_data_ptr<int32_t>()[i * x.stride(0)];
}

void check_sequence(const Sequence& s, const PagedBatch& batch, int64_t tokens, int64_t max_queries, int64_t capacity) {
  const int64_t i = s.cache;
  TORCH_CHECK_VALUE(
      s.first_query >= 0 && s.queries >= 0 && s.first_query + s.queries <= tokens, "query_starts has ", s.first_query, " and ",
      s.first_query + s.queries, " for sequence ", i, "; accepted are ascending rows of q, 0 to ", tokens);
  TORCH_CHECK_VALUE(
      s.queries <= max_queries, "max_queries is ", max_queries, "; accepted is the most of a sequence or more, and sequence ", i, " has ",
      s.queries);
  TORCH_CHECK_VALUE(
      s.end == 0 || (s.end >= s.queries && s.end <= capacity), "lengths has ", s.end, " for sequence ", i, "; accepted are its queries, ",
      s.queries, ", to the tokens of ", batch.block_table.size(1), " pages, ", capacity);
}

void check_ring(const Sequence& s, const Rows& recent, int64_t rings) {
  if (s.ring == -1) return;
  TORCH_CHECK_VALUE(
      s.ring >= 0 && s.ring < rings, "rings has ", s.ring, " for sequence ", s.cache, "; accepted are -1 (none) and 0 to ", rings - 1);
  TORCH_CHECK_VALUE(
      s.recent_start >= 0 && s.end - s.recent_start <= recent.capacity, "recent_starts has ", s.recent_start, " for sequence ", s.cache,
      " of length ", s.end, "; accepted are at most ", recent.capacity, " tokens, the rows of k_recent");
}

// Those that a sequence reads.
void check_pages(const Sequence& s, const BlockTable& table, int64_t pages, const Attention& attention) {
  const int64_t size = attention.k.codes.capacity, last = attention.span(s, s.queries - 1).exact;
  for (int64_t i = attention.span(s, 0).lo / size; i * size < last; ++i) {
    TORCH_CHECK_VALUE(
        table.at(s.cache, i) >= 0 && table.at(s.cache, i) < pages, "block_table has ", table.at(s.cache, i), " for tokens ", i * size,
        " to ", std::min((i + 1) * size, s.end) - 1, " of sequence ", s.cache, "; accepted are the pages 0 to ", pages - 1);
  }
}

int64_t work_of(const Sequence& s) {
  return s.queries * s.end;
}

} // namespace

void check_slots(const char* name, const at::Tensor& slots, int64_t count) {
  const int64_t tokens = slots.size(0), step = slots.stride(0);
  const int64_t* data = slots.const_data_ptr<int64_t>();
  static thread_local std::vector<int64_t> used;
  used.clear();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t slot = data[t * step];
    TORCH_CHECK_VALUE(
        slot >= -1 && slot < count, name, " has ", slot, " for token ", t, "; accepted are -1 (not stored) and 0 to ", count - 1);
    if (slot >= 0) used.push_back(slot);
  }
  if (!std::is_sorted(used.begin(), used.end())) std::sort(used.begin(), used.end());
  const auto twice = std::adjacent_find(used.begin(), used.end());
  TORCH_CHECK_VALUE(twice == used.end(), name, " has ", *twice, " for two tokens; accepted is a slot of its own for each");
}

void add_sequences(const PagedBatch& batch, int64_t tokens, int64_t max_queries, int64_t pages, int64_t rings, Attention& attention) {
  const int64_t count = batch.block_table.size(0), capacity = batch.block_table.size(1) * attention.k.codes.capacity;
  auto& found = attention.sequences;
  found.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = at(batch.query_starts, i), queries = at(batch.query_starts, i + 1) - first;
    Sequence s{0, first, queries, 0, at(batch.lengths, i), 0, i, -1, 1};
    check_sequence(s, batch, tokens, max_queries, capacity);
    if (queries == 0) continue;
    if (attention.k_recent) {
      s.ring = at(*batch.rings, i);
      s.recent_start = at(*batch.recent_starts, i);
      check_ring(s, attention.k_recent->codes, rings);
    }
    check_pages(s, *attention.k.table, pages, attention);
    s.splits = splits_for(attention.kv_heads * attention.blocks(queries), s.tiles());
    found.push_back(s);
  }
  std::stable_sort(found.begin(), found.end(), [](const Sequence& a, const Sequence& b) { return work_of(a) > work_of(b); });
}

} // namespace int4kv
