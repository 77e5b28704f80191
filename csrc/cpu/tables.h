// What tables, slots and lengths hold, checked before anything is read or written.
#pragma once
#include "attention.h"

namespace int4kv {

// Every slot is -1 or one of slots [0, count), and no two are the same.
void check_slots(const char* name, const at::Tensor& slots, int64_t count);

// Gives `attention` those sequences of the batch that have queries, the ones with the most work first. q has `tokens` rows.
void add_sequences(const PagedBatch& batch, int64_t tokens, int64_t max_queries, int64_t pages, int64_t rings, Attention& attention);

} // namespace int4kv
