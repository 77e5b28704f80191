// Barriers, <metal_simdgroup> and quad-group functions. Each is a rendezvous: threads stop there until their group came.
#pragma once
#include "collective.h"

namespace metal {

enum class mem_flags {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(int(a) | int(b));
}

inline void threadgroup_barrier(mem_flags flags, MSL_SITE("threadgroup_barrier")) {
  msl::meet_at_barrier(msl::threadgroup_wide, flags != mem_flags::mem_none, site);
}
inline void simdgroup_barrier(mem_flags flags, MSL_SITE("simdgroup_barrier")) {
  msl::meet_at_barrier(msl::simdgroup_wide, flags != mem_flags::mem_none, site);
}

#define MSL_REDUCTION(name, op)                                          \
  template <typename T>                                                  \
  T simd_##name(T value, MSL_SITE("simd_" #name)) {                      \
    return msl::reduce<T, msl::op<T>>(value, msl::simdgroup_wide, site); \
  }                                                                      \
  template <typename T>                                                  \
  T quad_##name(T value, MSL_SITE("quad_" #name)) {                      \
    return msl::reduce<T, msl::op<T>>(value, msl::quadgroup_wide, site); \
  }
MSL_REDUCTION(sum, add) MSL_REDUCTION(product, multiply) MSL_REDUCTION(max, larger) MSL_REDUCTION(min, smaller)
MSL_REDUCTION(and, bit_and) MSL_REDUCTION(or, bit_or) MSL_REDUCTION(xor, bit_xor)
#undef MSL_REDUCTION

#define MSL_SCAN(name, op, identity, inclusive) \
  template <typename T> \
  T simd_##name(T value, MSL_SITE("simd_" #name)) { \
    return msl::scan<T, msl::op<T>, identity, inclusive>(value, msl::simdgroup_wide, site); \
  } \
  template <typename T> \
  T quad_##name(T value, MSL_SITE("quad_" #name)) { \
    return msl::scan<T, msl::op<T>, identity, inclusive>(value, msl::quadgroup_wide, site); \
  }
MSL_SCAN(prefix_inclusive_sum, add, 0, true) MSL_SCAN(prefix_exclusive_sum, add, 0, false)
MSL_SCAN(prefix_inclusive_product, multiply, 1, true) MSL_SCAN(prefix_exclusive_product, multiply, 1, false)
#undef MSL_SCAN

#define MSL_SHUFFLE(group, name, source)                                       \
  template <typename T>                                                        \
  T group##_##name(T value, ushort n, MSL_SITE(#group "_" #name)) {            \
    constexpr msl::Width width = msl::group##group_wide;                       \
    const uint own = msl::own_index(width);                                    \
    return msl::gather(value, msl::lane_of_group(source, width), width, site); \
  }
#define MSL_SHUFFLES(group)                                        \
  MSL_SHUFFLE(group, broadcast, (void(own), n))                    \
  MSL_SHUFFLE(group, shuffle, (void(own), n))                      \
  MSL_SHUFFLE(group, shuffle_xor, own ^ n)                         \
  MSL_SHUFFLE(group, shuffle_down, own + n)                        \
  MSL_SHUFFLE(group, shuffle_up, own - n)                          \
  MSL_SHUFFLE(group, shuffle_rotate_down, (own + n) & (width - 1)) \
  MSL_SHUFFLE(group, shuffle_rotate_up, (own - n) & (width - 1))
MSL_SHUFFLES(simd) MSL_SHUFFLES(quad)
#undef MSL_SHUFFLE

// Lanes whose source would lie outside of the group read `fill` of the lane at the other end, as if it followed the data.
#define MSL_SHUFFLE_AND_FILL(group, name, inside, source) \
  template <typename T> \
  T group##_shuffle_and_fill_##name(T value, T fill, ushort n, MSL_SITE(#group "_shuffle_and_fill_" #name)) { \
    constexpr msl::Width width = msl::group##group_wide; \
    const uint own = msl::own_index(width); \
    const uint lane = msl::lane_of_group((source) & (width - 1), width); \
    const msl::Pair<T> found = msl::gather_pair(msl::Pair<T>{value, fill}, lane, width, site); \
    return (inside) ? found.value : found.fill; \
  }
MSL_SHUFFLE_AND_FILL(simd, down, own + n < width, own + n) MSL_SHUFFLE_AND_FILL(simd, up, own >= n, own - n)
MSL_SHUFFLE_AND_FILL(quad, down, own + n < width, own + n) MSL_SHUFFLE_AND_FILL(quad, up, own >= n, own - n)
#undef MSL_SHUFFLE_AND_FILL

template <typename T>
T simd_broadcast_first(T value, MSL_SITE("simd_broadcast_first")) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return msl::collective<T>(&msl::broadcast_first_participant<T>, value, msl::simdgroup_wide, site);
}
template <typename T>
T quad_broadcast_first(T value, MSL_SITE("quad_broadcast_first")) {
  MSL_REQUIRE_SIMD_TYPE(T);
  return msl::collective<T>(&msl::broadcast_first_participant<T>, value, msl::quadgroup_wide, site);
}

class simd_vote {
 public:
  using vote_t = ulong;
  explicit constexpr simd_vote(vote_t votes = 0) : votes_(votes) {}
  explicit constexpr operator vote_t() const { return votes_; }
  constexpr bool all() const { return static_cast<uint>(votes_) == ~0u; }
  constexpr bool any() const { return votes_ != 0; }

 private:
  vote_t votes_;
};

inline simd_vote simd_ballot(bool yes, MSL_SITE("simd_ballot")) {
  return simd_vote(msl::votes_and_active(yes, msl::simdgroup_wide, site).x);
}
inline simd_vote simd_active_threads_mask(MSL_SITE("simd_active_threads_mask")) {
  return simd_vote(msl::votes_and_active(true, msl::simdgroup_wide, site).y);
}
inline bool simd_is_first(MSL_SITE("simd_is_first")) {
  const uint active = msl::votes_and_active(true, msl::simdgroup_wide, site).y;
  return uint(ctz(active)) == msl_lane();
}
inline bool simd_any(bool yes, MSL_SITE("simd_any")) {
  return msl::votes_and_active(yes, msl::simdgroup_wide, site).x != 0;
}
inline bool simd_all(bool yes, MSL_SITE("simd_all")) {
  const uint2 found = msl::votes_and_active(yes, msl::simdgroup_wide, site);
  return found.x == found.y;
}
inline bool quad_any(bool yes, MSL_SITE("quad_any")) {
  return msl::votes_and_active(yes, msl::quadgroup_wide, site).x != 0;
}
inline bool quad_all(bool yes, MSL_SITE("quad_all")) {
  const uint2 found = msl::votes_and_active(yes, msl::quadgroup_wide, site);
  return found.x == found.y;
}

#undef MSL_REQUIRE_SIMD_TYPE
}  // namespace metal
