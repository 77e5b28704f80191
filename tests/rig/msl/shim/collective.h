// What the threads of a simdgroup compute together when they have met, and how a thread takes part.
#pragma once
#include "integer.h"
#include "runtime.h"

namespace msl {
using namespace metal;

inline void meet_at_barrier(Width width, bool orders_memory, const Site& site) {
  const Rendezvous barrier = {site, width, orders_memory, false, nullptr, nullptr, nullptr};
  msl_meet(&barrier);
}

template <typename Result, typename Value>
Result collective(void (*combine)(Participants&), const Value& value, Width width, const Site& site, bool whole = false) {
  Result result;
  const Rendezvous rendezvous = {site, width, false, whole, combine, &value, &result};
  msl_meet(&rendezvous);
  return result;
}

template <typename T>
constexpr bool simd_type = !is_same_v<make_scalar_t<T>, bool> && sizeof(make_scalar_t<T>) <= 4;
#define MSL_REQUIRE_SIMD_TYPE(T) static_assert(::msl::simd_type<T>, "SIMD functions take neither bool nor 64-bit types")

// The sum of pairs, then of pairs of sums, over the active lanes in order.
template <typename T, T (*op)(T, T)>
void reduce_participants(Participants& lanes) {
  T values[32];
  int count = 0;
  for (int i = 0; i < 32; i++)
    if (lanes.active >> i & 1) values[count++] = *static_cast<const T*>(lanes.value[i]);
  for (; count > 1; count = (count + 1) / 2) {
    for (int i = 0; i + 1 < count; i += 2) values[i / 2] = op(values[i], values[i + 1]);
    if (count & 1) values[count / 2] = values[count - 1];
  }
  for (int i = 0; i < 32; i++)
    if (lanes.active >> i & 1) *static_cast<T*>(lanes.result[i]) = values[0];
}
template <typename T, T (*op)(T, T)>
T reduce(T value, Width width, const Site& site) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return collective<T>(&reduce_participants<T, op>, value, width, site);
}

// Running result over the active lanes in order, with a lane's own value (inclusive) or without.
template <typename T, T (*op)(T, T), int identity, bool inclusive>
void scan_participants(Participants& lanes) {
  T running = T(identity);
  for (int i = 0; i < 32; i++) {
    if (!(lanes.active >> i & 1)) continue;
    const T next = op(running, *static_cast<const T*>(lanes.value[i]));
    *static_cast<T*>(lanes.result[i]) = inclusive ? next : running;
    running = next;
  }
}

template <typename T, T (*op)(T, T), int identity, bool inclusive>
T scan(T value, Width width, const Site& site) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return collective<T>(&scan_participants<T, op, identity, inclusive>, value, width, site);
}

template <typename T>
T add(T a, T b) { return static_cast<T>(a + b); }
template <typename T>
T multiply(T a, T b) { return static_cast<T>(a * b); }
template <typename T>
T larger(T a, T b) { return max(a, b); }
template <typename T>
T smaller(T a, T b) { return min(a, b); }
template <typename T>
T bit_and(T a, T b) { return static_cast<T>(a & b); }
template <typename T>
T bit_or(T a, T b) { return static_cast<T>(a | b); }
template <typename T>
T bit_xor(T a, T b) { return static_cast<T>(a ^ b); }

// A read of another lane's value. From a lane outside of the group or not taking part it is undefined: here all bits set,
// NaN as a float.
template <typename T>
struct Gather {
  T value;
  uint source;
};
template <typename T>
void gather_participants(Participants& lanes) {
  for (uint i = 0; i < 32; i++) {
    if (!(lanes.active >> i & 1)) continue;
    const uint source = static_cast<const Gather<T>*>(lanes.value[i])->source;
    const bool taking_part = source < 32 && (lanes.active >> source & 1);
    if (taking_part) *static_cast<T*>(lanes.result[i]) = static_cast<const Gather<T>*>(lanes.value[source])->value;
    else __builtin_memset(lanes.result[i], 0xff, sizeof(T));
  }
}
template <typename T>
T gather(T value, uint source, Width width, const Site& site) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return collective<T>(&gather_participants<T>, Gather<T>{value, source}, width, site);
}

// Lane number `index` of the caller's group, or no lane at all.
inline uint lane_of_group(uint index, Width width) {
  return index < width ? (msl_lane() & ~(width - 1)) + index : ~0u;
}
inline uint own_index(Width width) {
  return msl_lane() & (width - 1);
}

template <typename T>
struct Pair {
  T value, fill;
};
template <typename T>
Pair<T> gather_pair(Pair<T> mine, uint source, Width width, const Site& site) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return collective<Pair<T>>(&gather_participants<Pair<T>>, Gather<Pair<T>>{mine, source}, width, site);
}

template <typename T>
void broadcast_first_participant(Participants& lanes) {
  const T first = *static_cast<const T*>(lanes.value[__builtin_ctz(lanes.active)]);
  for (int i = 0; i < 32; i++)
    if (lanes.active >> i & 1) *static_cast<T*>(lanes.result[i]) = first;
}

// Bit i of x: lane i takes part and says yes; of y: it takes part.
inline void collect_votes(Participants& lanes) {
  uint votes = 0;
  for (int i = 0; i < 32; i++)
    if (lanes.active >> i & 1) votes |= uint(*static_cast<const bool*>(lanes.value[i])) << i;
  for (int i = 0; i < 32; i++)
    if (lanes.active >> i & 1) *static_cast<uint2*>(lanes.result[i]) = uint2(votes, lanes.active);
}
inline uint2 votes_and_active(bool yes, Width width, const Site& site) {
  return collective<uint2>(&collect_votes, yes, width, site);
}

}  // namespace msl
