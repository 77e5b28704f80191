// simdgroup_matrix: an 8x8 matrix spread over the 32 lanes of a simdgroup, two neighbours of a row in each.
#pragma once
#include "simdgroup.h"

namespace msl {

// Where a lane's two elements are: (row, column) and (row, column + 1).
//
//          column 0 1   2 3   4 5   6 7
//   row 0        0     1     8     9
//   row 1        2     3    10    11
//   row 2        4     5    12    13        (row 4 + r: 16 more)
//   row 3        6     7    14    15
struct Fragment {
  uint row, column;
  explicit Fragment(uint lane) : row((lane >> 2 & 4) + (lane >> 1 & 3)), column((lane >> 2 & 2) * 2 + (lane & 1) * 2) {}

  // Of element k in memory.
  ulong offset(uint k, ulong elements_per_row, metal::ulong2 origin, bool transposed) const {
    const uint across = transposed ? row : column + k, down = transposed ? column + k : row;
    return (origin.y + down) * elements_per_row + origin.x + across;
  }
};

// The whole simdgroup has to take part in a matrix function.
inline void meet_for_matrix(const Site& site) {
  const Rendezvous rendezvous = {site, simdgroup_wide, false, true, nullptr, nullptr, nullptr};
  msl_meet(&rendezvous);
}

template <typename A, typename B, typename C>
struct Factors {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
};

// Products and sums in float, rounded to the result's type once.
template <typename D, typename A, typename B, typename C>
void multiply_participants(Participants& lanes) {
  float a[8][8], b[8][8], sum[8][8];
  for (uint lane = 0; lane < 32; lane++) {
    const Fragment at(lane);
    const auto& mine = *static_cast<const Factors<A, B, C>*>(lanes.value[lane]);
    for (uint k = 0; k < 2; k++) {
      a[at.row][at.column + k] = static_cast<float>(mine.a[k]);
      b[at.row][at.column + k] = static_cast<float>(mine.b[k]);
      sum[at.row][at.column + k] = static_cast<float>(mine.c[k]);
    }
  }
  for (uint i = 0; i < 8; i++)
    for (uint k = 0; k < 8; k++)
      for (uint j = 0; j < 8; j++) sum[i][j] = __builtin_fmaf(a[i][k], b[k][j], sum[i][j]);
  for (uint lane = 0; lane < 32; lane++) {
    const Fragment at(lane);
    *static_cast<vec<D, 2>*>(lanes.result[lane]) = vec<D, 2>(D(sum[at.row][at.column]), D(sum[at.row][at.column + 1]));
  }
}

}  // namespace msl

namespace metal {

template <typename T, int columns, int rows = columns>
struct simdgroup_matrix {
  static_assert(columns == 8 && rows == 8, "simdgroup_matrix is 8x8");
  static_assert(is_floating_point_v<T>, "simdgroup_matrix of half, bfloat or float");
  using storage_type = vec<T, 2>;

  simdgroup_matrix() { __builtin_memset(&elements_, 0xff, sizeof elements_); }
  explicit simdgroup_matrix(T diagonal) {
    const msl::Fragment at(msl_lane());
    elements_ = storage_type(at.row == at.column ? diagonal : T(0), at.row == at.column + 1 ? diagonal : T(0));
  }
  storage_type& thread_elements() { return elements_; }
  const storage_type& thread_elements() const { return elements_; }

 private:
  storage_type elements_;
};

using simdgroup_half8x8 = simdgroup_matrix<half, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8>;
using simdgroup_float8x8 = simdgroup_matrix<float, 8>;

template <typename T, int columns, int rows = columns>
simdgroup_matrix<T, columns, rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, columns, rows> matrix;
  matrix.thread_elements() = vec<T, 2>(value, value);
  return matrix;
}

template <typename T, typename Source>
void simdgroup_load(simdgroup_matrix<T, 8>& matrix, const Source* source, ulong elements_per_row = 8,
                    ulong2 origin = ulong2(0), bool transposed = false, MSL_SITE("simdgroup_load")) {
  static_assert(is_same_v<remove_volatile_t<Source>, T>, "simdgroup_load from another element type");
  msl::meet_for_matrix(site);
  const msl::Fragment at(msl_lane());
  for (uint k = 0; k < 2; k++)
    matrix.thread_elements()[k] = source[at.offset(k, elements_per_row, origin, transposed)];
}
template <typename T, typename Target>
void simdgroup_store(const simdgroup_matrix<T, 8>& matrix, Target* target, ulong elements_per_row = 8,
                     ulong2 origin = ulong2(0), bool transposed = false, MSL_SITE("simdgroup_store")) {
  static_assert(is_same_v<remove_volatile_t<Target>, T>, "simdgroup_store to another element type");
  msl::meet_for_matrix(site);
  const msl::Fragment at(msl_lane());
  for (uint k = 0; k < 2; k++)
    target[at.offset(k, elements_per_row, origin, transposed)] = matrix.thread_elements()[k];
}

// References that are not const, as in Metal's specification: a temporary is refused.
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8>& d, simdgroup_matrix<A, 8>& a,
                                   simdgroup_matrix<B, 8>& b, simdgroup_matrix<C, 8>& c,
                                   MSL_SITE("simdgroup_multiply_accumulate")) {
  const msl::Factors<A, B, C> mine = {a.thread_elements(), b.thread_elements(), c.thread_elements()};
  constexpr auto multiply = &msl::multiply_participants<D, A, B, C>;
  d.thread_elements() = msl::collective<vec<D, 2>>(multiply, mine, msl::simdgroup_wide, site, true);
}
template <typename D, typename A, typename B>
void simdgroup_multiply(simdgroup_matrix<D, 8>& d, simdgroup_matrix<A, 8>& a, simdgroup_matrix<B, 8>& b,
                        MSL_SITE("simdgroup_multiply")) {
  simdgroup_matrix<D, 8> zero = make_filled_simdgroup_matrix<D, 8>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero, site);
}

}  // namespace metal
