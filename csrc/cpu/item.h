// One work item of attend: the query rows of a block over one share of their tokens.
#pragma once
#include <memory>
#include <utility>

#include "attention.h"

namespace int4kv {

class Item {
 public:
  Item(const Attention& attention, int64_t number);
  void run();

 private:
  struct Memory;  // a thread's own, kept from call to call
  static Memory& memory();

  int64_t head(int64_t row) const { return kv_head_ * a_.group() + (first_row_ + row) % a_.group(); }
  int64_t query(int64_t row) const { return (first_row_ + row) / a_.group(); }
  void load_query(int64_t row);
  template <typename Range>
  void read(const Source& k, const Source& v, int64_t b, Range range);
  void look_ahead(const Source& k, const Source& v, int64_t b, int64_t tile, int64_t last);
  uint64_t seen(int64_t row, int64_t tile, int64_t lo, int64_t hi) const;
  void store();

  const Attention& a_;
  const Sequence& s_;
  Memory& memory_;
  int64_t split_, kv_head_, first_row_, rows_, from_, to_;
};

} // namespace int4kv
