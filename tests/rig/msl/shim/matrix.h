// matrix<T, columns, rows>: columns of vectors.
#pragma once
#include "vector.h"

namespace metal {

template <typename T, int columns, int rows>
struct matrix {
  vec<T, rows> column[columns];

  matrix() = default;
  template <typename S, typename = msl::if_scalar<S>>
  constexpr explicit matrix(S diagonal) : column{} {
    for (int i = 0; i < columns && i < rows; i++) column[i].d[i] = static_cast<T>(diagonal);
  }
  template <typename... V, typename = enable_if_t<sizeof...(V) == columns && (is_same_v<V, vec<T, rows>> && ...)>>
  constexpr matrix(V... v) : column{v...} {}
  constexpr vec<T, rows>& operator[](int i) { return column[i]; }
  constexpr const vec<T, rows>& operator[](int i) const { return column[i]; }
};

template <typename T, int columns, int rows>
constexpr vec<T, rows> operator*(const matrix<T, columns, rows>& m, vec<T, columns> v) {
  vec<T, rows> sum(T(0));
  for (int i = 0; i < columns; i++) sum += m[i] * v[i];
  return sum;
}
template <typename T, int columns, int rows>
constexpr vec<T, columns> operator*(vec<T, rows> v, const matrix<T, columns, rows>& m) {
  vec<T, columns> sum(T(0));
  for (int i = 0; i < columns; i++)
    for (int j = 0; j < rows; j++) sum[i] += v[j] * m[i][j];
  return sum;
}
template <typename T, int columns, int inner, int rows>
constexpr matrix<T, columns, rows> operator*(const matrix<T, inner, rows>& a, const matrix<T, columns, inner>& b) {
  matrix<T, columns, rows> product;
  for (int i = 0; i < columns; i++) product[i] = a * b[i];
  return product;
}
template <typename T, int columns, int rows, typename S, typename = msl::if_scalar<S>>
constexpr matrix<T, columns, rows> operator*(matrix<T, columns, rows> m, S s) {
  for (int i = 0; i < columns; i++) m[i] *= s;
  return m;
}
template <typename T, int columns, int rows, typename S, typename = msl::if_scalar<S>>
constexpr matrix<T, columns, rows> operator*(S s, matrix<T, columns, rows> m) {
  return m * s;
}

#define MSL_ELEMENTWISE(op)                                                                                       \
  template <typename T, int columns, int rows>                                                                    \
  constexpr matrix<T, columns, rows> operator op(matrix<T, columns, rows> a, const matrix<T, columns, rows>& b) { \
    for (int i = 0; i < columns; i++) a[i] = a[i] op b[i];                                                        \
    return a;                                                                                                     \
  }
MSL_ELEMENTWISE(+) MSL_ELEMENTWISE(-)
#undef MSL_ELEMENTWISE

template <typename T, int columns, int rows>
constexpr matrix<T, rows, columns> transpose(const matrix<T, columns, rows>& m) {
  matrix<T, rows, columns> result(T(0));
  for (int i = 0; i < columns; i++)
    for (int j = 0; j < rows; j++) result[j][i] = m[i][j];
  return result;
}

#define MSL_NAMES(T)              \
  using T##2x2 = matrix<T, 2, 2>; \
  using T##2x3 = matrix<T, 2, 3>; \
  using T##2x4 = matrix<T, 2, 4>; \
  using T##3x2 = matrix<T, 3, 2>; \
  using T##3x3 = matrix<T, 3, 3>; \
  using T##3x4 = matrix<T, 3, 4>; \
  using T##4x2 = matrix<T, 4, 2>; \
  using T##4x3 = matrix<T, 4, 3>; \
  using T##4x4 = matrix<T, 4, 4>;
MSL_NAMES(half) MSL_NAMES(float)
#undef MSL_NAMES

}  // namespace metal
