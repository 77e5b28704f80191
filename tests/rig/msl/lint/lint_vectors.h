// Vectors, packed vectors, matrices and arrays, usable in every address space.
#pragma once
#include "lint_scalars.h"

// One element of an indexable type, in the space of the whole.
#define METAL_ELEMENTS(T)                       \
  __private T& operator[](int) __private;       \
  const __private T& operator[](int) const __private; \
  __global T& operator[](int) __global;         \
  const __global T& operator[](int) const __global; \
  __local T& operator[](int) __local;           \
  const __local T& operator[](int) const __local; \
  const __constant T& operator[](int) const __constant;

// Swizzles: the endings, pairs, triples and quadruples of n letters, each behind the prefix p.
#define METAL_ENDINGS_2(p) p##x, p##y
#define METAL_ENDINGS_3(p) p##x, p##y, p##z
#define METAL_ENDINGS_4(p) p##x, p##y, p##z, p##w
#define METAL_PAIRS_2(p) METAL_ENDINGS_2(p##x), METAL_ENDINGS_2(p##y)
#define METAL_PAIRS_3(p) METAL_ENDINGS_3(p##x), METAL_ENDINGS_3(p##y), METAL_ENDINGS_3(p##z)
#define METAL_PAIRS_4(p) METAL_ENDINGS_4(p##x), METAL_ENDINGS_4(p##y), METAL_ENDINGS_4(p##z), METAL_ENDINGS_4(p##w)
#define METAL_TRIPLES_2(p) METAL_PAIRS_2(p##x), METAL_PAIRS_2(p##y)
#define METAL_TRIPLES_3(p) METAL_PAIRS_3(p##x), METAL_PAIRS_3(p##y), METAL_PAIRS_3(p##z)
#define METAL_TRIPLES_4(p) METAL_PAIRS_4(p##x), METAL_PAIRS_4(p##y), METAL_PAIRS_4(p##z), METAL_PAIRS_4(p##w)
#define METAL_QUADRUPLES_2(p) METAL_TRIPLES_2(p##x), METAL_TRIPLES_2(p##y)
#define METAL_QUADRUPLES_3(p) METAL_TRIPLES_3(p##x), METAL_TRIPLES_3(p##y), METAL_TRIPLES_3(p##z)
#define METAL_QUADRUPLES_4(p) METAL_TRIPLES_4(p##x), METAL_TRIPLES_4(p##y), METAL_TRIPLES_4(p##z), METAL_TRIPLES_4(p##w)

#define METAL_PROPERTY(size)                                                  \
  constexpr vec<T, size> get##size() const __generic { return vec<T, size>(); } \
  constexpr vec<T, size> get##size() const __constant { return vec<T, size>(); } \
  void put##size(vec<T, size>) __generic;                                     \
  __declspec(property(get = get##size, put = put##size)) vec<T, size>
#define METAL_SWIZZLES(n)            \
  METAL_PROPERTY(2) METAL_PAIRS_##n();   \
  METAL_PROPERTY(3) METAL_TRIPLES_##n(); \
  METAL_PROPERTY(4) METAL_QUADRUPLES_##n();

namespace metal {

template <typename T, int N>
struct vec;
template <typename T, int N>
struct packed_vec;

#define METAL_VECTOR(n, ...)                                                      \
  template <typename T>                                                           \
  struct vec<T, n> {                                                              \
    T __VA_ARGS__;                                                                \
    vec() = default;                                                              \
    constexpr vec(const __generic vec&) = default;                                \
    constexpr vec(const __constant vec& other) : vec(T(other.x)) {}               \
    template <typename S, typename = enable_if_t<is_arithmetic_v<S>>>             \
    constexpr vec(S) : vec() {}                                                   \
    template <typename S>                                                         \
    constexpr explicit vec(vec<S, n>) : vec() {}                                  \
    constexpr vec(packed_vec<T, n>) : vec() {}                                    \
    template <typename A, typename B, typename... More>                           \
    constexpr vec(A, B, More...) : vec() {}                                       \
    __generic vec& operator=(const __generic vec&) __generic = default;           \
    METAL_ELEMENTS(T)                                                             \
    METAL_SWIZZLES(n)                                                             \
  };
METAL_VECTOR(2, x, y)
METAL_VECTOR(3, x, y, z)
METAL_VECTOR(4, x, y, z, w)

template <typename T, int N>
struct packed_vec {
  T x, y;
  packed_vec() = default;
  constexpr packed_vec(const __generic packed_vec&) = default;
  constexpr packed_vec(const __constant packed_vec& other) : packed_vec() {}
  constexpr packed_vec(vec<T, N>) : packed_vec() {}
  METAL_ELEMENTS(T)
};

template <typename A, typename B>
struct wider {
  using type = decltype(A() + B());
};
template <typename T>
struct wider<T, T> {
  using type = T;
};
template <typename T, int N>
struct wider<vec<T, N>, vec<T, N>> {
  using type = vec<T, N>;
};
template <typename T, int N, typename S>
struct wider<vec<T, N>, S> {
  using type = vec<T, N>;
};
template <typename S, typename T, int N>
struct wider<S, vec<T, N>> {
  using type = vec<T, N>;
};
template <typename A, typename B>
using wider_t = typename wider<A, B>::type;

// What a comparison of T gives.
template <typename T>
struct truth {
  using type = bool;
};
template <typename T, int N>
struct truth<vec<T, N>> {
  using type = vec<bool, N>;
};
template <typename T>
using truth_t = typename truth<T>::type;

#define METAL_OPERATOR(sign, result)                           \
  template <typename T, int N>                                 \
  constexpr result operator sign(vec<T, N>, vec<T, N>);        \
  template <typename T, int N, typename S, typename = enable_if_t<is_arithmetic_v<S>>> \
  constexpr result operator sign(vec<T, N>, S);                \
  template <typename S, typename T, int N, typename = enable_if_t<is_arithmetic_v<S>>> \
  constexpr result operator sign(S, vec<T, N>);
#define METAL_ARITHMETIC(sign)             \
  METAL_OPERATOR(sign, METAL_VEC_RESULT)   \
  METAL_ASSIGNMENT(sign, __private)        \
  METAL_ASSIGNMENT(sign, __global)         \
  METAL_ASSIGNMENT(sign, __local)
#define METAL_ASSIGNMENT(sign, space)      \
  template <typename T, int N, typename S> \
  space vec<T, N>& operator sign##=(space vec<T, N>&, S);
#define METAL_VEC_RESULT vec<T, N>
#define METAL_BOOL_RESULT vec<bool, N>
METAL_ARITHMETIC(+) METAL_ARITHMETIC(-) METAL_ARITHMETIC(*) METAL_ARITHMETIC(/) METAL_ARITHMETIC(%)
METAL_ARITHMETIC(&) METAL_ARITHMETIC(|) METAL_ARITHMETIC(^) METAL_ARITHMETIC(<<) METAL_ARITHMETIC(>>)
METAL_OPERATOR(<, METAL_BOOL_RESULT) METAL_OPERATOR(>, METAL_BOOL_RESULT) METAL_OPERATOR(<=, METAL_BOOL_RESULT)
METAL_OPERATOR(>=, METAL_BOOL_RESULT) METAL_OPERATOR(==, METAL_BOOL_RESULT) METAL_OPERATOR(!=, METAL_BOOL_RESULT)
METAL_OPERATOR(&&, METAL_BOOL_RESULT) METAL_OPERATOR(||, METAL_BOOL_RESULT)
template <typename T, int N>
constexpr vec<T, N> operator-(vec<T, N>);
template <typename T, int N>
constexpr vec<T, N> operator~(vec<T, N>);
template <typename T, int N>
constexpr vec<bool, N> operator!(vec<T, N>);

// Arithmetic with a bfloat, exact for every pair of types, so that no conversion is ever needed.
template <typename A, typename B>
using bfloat_result_t =
    enable_if_t<is_arithmetic_v<A> && is_arithmetic_v<B> && (__is_same(A, bfloat) || __is_same(B, bfloat)),
                conditional_t<__is_same(A, float) || __is_same(B, float), float, bfloat>>;
#define METAL_BFLOAT(sign)                                     \
  template <typename A, typename B>                            \
  constexpr bfloat_result_t<A, B> operator sign(A, B);         \
  template <typename S>                                        \
  __generic bfloat& operator sign##=(__generic bfloat&, S);
METAL_BFLOAT(+) METAL_BFLOAT(-) METAL_BFLOAT(*) METAL_BFLOAT(/)

template <typename T, int columns, int rows>
struct matrix {
  using column_type = vec<T, rows>;
  column_type column[columns];
  matrix() = default;
  template <typename... More>
  constexpr explicit matrix(More...) : matrix() {}
  METAL_ELEMENTS(column_type)
};
template <typename T, int columns, int rows>
vec<T, rows> operator*(matrix<T, columns, rows>, vec<T, columns>);
template <typename T, int columns, int rows>
vec<T, columns> operator*(vec<T, rows>, matrix<T, columns, rows>);
template <typename T, int columns, int rows, int inner>
matrix<T, columns, rows> operator*(matrix<T, inner, rows>, matrix<T, columns, inner>);
template <typename T, int columns, int rows>
matrix<T, columns, rows> operator*(matrix<T, columns, rows>, T);
template <typename T, int columns, int rows>
matrix<T, columns, rows> operator+(matrix<T, columns, rows>, matrix<T, columns, rows>);
template <typename T, int columns, int rows>
matrix<T, columns, rows> operator-(matrix<T, columns, rows>, matrix<T, columns, rows>);
template <typename T, int columns, int rows>
matrix<T, rows, columns> transpose(matrix<T, columns, rows>);

template <typename T, size_t N>
struct array {
  T element[N];
  METAL_ELEMENTS(T)
  constexpr size_t size() const __generic { return N; }
};

#define METAL_TYPES(T)            \
  using T##2 = vec<T, 2>;         \
  using T##3 = vec<T, 3>;         \
  using T##4 = vec<T, 4>;         \
  using packed_##T##2 = packed_vec<T, 2>; \
  using packed_##T##3 = packed_vec<T, 3>; \
  using packed_##T##4 = packed_vec<T, 4>;
METAL_TYPES(bool) METAL_TYPES(char) METAL_TYPES(uchar) METAL_TYPES(short) METAL_TYPES(ushort) METAL_TYPES(int)
METAL_TYPES(uint) METAL_TYPES(long) METAL_TYPES(ulong) METAL_TYPES(half) METAL_TYPES(bfloat) METAL_TYPES(float)

#define METAL_MATRICES(T)         \
  using T##2x2 = matrix<T, 2, 2>; \
  using T##2x3 = matrix<T, 2, 3>; \
  using T##2x4 = matrix<T, 2, 4>; \
  using T##3x2 = matrix<T, 3, 2>; \
  using T##3x3 = matrix<T, 3, 3>; \
  using T##3x4 = matrix<T, 3, 4>; \
  using T##4x2 = matrix<T, 4, 2>; \
  using T##4x3 = matrix<T, 4, 3>; \
  using T##4x4 = matrix<T, 4, 4>;
METAL_MATRICES(half) METAL_MATRICES(float)

}  // namespace metal
