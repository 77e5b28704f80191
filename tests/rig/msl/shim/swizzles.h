// Swizzles of 2 to 4 letters as properties: v.xz reads and writes a vector. Which letters exist is the width's, so each
// width lists its swizzles by nested macros: MSL_LETTERS_n_k(M, ...) is M for each of the n letters, at nesting depth k.
#pragma once

#define MSL_LETTERS_2_1(M) M(2, x, 0) M(2, y, 1)
#define MSL_LETTERS_2_2(M, ...) M(2, __VA_ARGS__, x, 0) M(2, __VA_ARGS__, y, 1)
#define MSL_LETTERS_2_3(M, ...) M(2, __VA_ARGS__, x, 0) M(2, __VA_ARGS__, y, 1)
#define MSL_LETTERS_2_4(M, ...) M(2, __VA_ARGS__, x, 0) M(2, __VA_ARGS__, y, 1)
#define MSL_LETTERS_3_1(M) M(3, x, 0) M(3, y, 1) M(3, z, 2)
#define MSL_LETTERS_3_2(M, ...) M(3, __VA_ARGS__, x, 0) M(3, __VA_ARGS__, y, 1) M(3, __VA_ARGS__, z, 2)
#define MSL_LETTERS_3_3(M, ...) M(3, __VA_ARGS__, x, 0) M(3, __VA_ARGS__, y, 1) M(3, __VA_ARGS__, z, 2)
#define MSL_LETTERS_3_4(M, ...) M(3, __VA_ARGS__, x, 0) M(3, __VA_ARGS__, y, 1) M(3, __VA_ARGS__, z, 2)
#define MSL_LETTERS_4_1(M) M(4, x, 0) M(4, y, 1) M(4, z, 2) M(4, w, 3)
#define MSL_LETTERS_4_2(M, ...) M(4, __VA_ARGS__, x, 0) M(4, __VA_ARGS__, y, 1) M(4, __VA_ARGS__, z, 2) M(4, __VA_ARGS__, w, 3)
#define MSL_LETTERS_4_3(M, ...) M(4, __VA_ARGS__, x, 0) M(4, __VA_ARGS__, y, 1) M(4, __VA_ARGS__, z, 2) M(4, __VA_ARGS__, w, 3)
#define MSL_LETTERS_4_4(M, ...) M(4, __VA_ARGS__, x, 0) M(4, __VA_ARGS__, y, 1) M(4, __VA_ARGS__, z, 2) M(4, __VA_ARGS__, w, 3)

#define MSL_SWIZZLE_2(n, a, i, b, j)                                       \
  constexpr vec<T, 2> get_##a##b() const { return vec<T, 2>(d[i], d[j]); } \
  constexpr void put_##a##b(vec<T, 2> v) { write_swizzle<i, j>(v); }       \
  __declspec(property(get = get_##a##b, put = put_##a##b)) vec<T, 2> a##b;
#define MSL_SWIZZLE_3(n, a, i, b, j, c, k)                                          \
  constexpr vec<T, 3> get_##a##b##c() const { return vec<T, 3>(d[i], d[j], d[k]); } \
  constexpr void put_##a##b##c(vec<T, 3> v) { write_swizzle<i, j, k>(v); }          \
  __declspec(property(get = get_##a##b##c, put = put_##a##b##c)) vec<T, 3> a##b##c;
#define MSL_SWIZZLE_4(n, a, i, b, j, c, k, e, l)                                             \
  constexpr vec<T, 4> get_##a##b##c##e() const { return vec<T, 4>(d[i], d[j], d[k], d[l]); } \
  constexpr void put_##a##b##c##e(vec<T, 4> v) { write_swizzle<i, j, k, l>(v); }             \
  __declspec(property(get = get_##a##b##c##e, put = put_##a##b##c##e)) vec<T, 4> a##b##c##e;

#define MSL_PAIR_1(n, ...) MSL_LETTERS_##n##_2(MSL_SWIZZLE_2, __VA_ARGS__)
#define MSL_TRIPLE_1(n, ...) MSL_LETTERS_##n##_2(MSL_TRIPLE_2, __VA_ARGS__)
#define MSL_TRIPLE_2(n, ...) MSL_LETTERS_##n##_3(MSL_SWIZZLE_3, __VA_ARGS__)
#define MSL_QUADRUPLE_1(n, ...) MSL_LETTERS_##n##_2(MSL_QUADRUPLE_2, __VA_ARGS__)
#define MSL_QUADRUPLE_2(n, ...) MSL_LETTERS_##n##_3(MSL_QUADRUPLE_3, __VA_ARGS__)
#define MSL_QUADRUPLE_3(n, ...) MSL_LETTERS_##n##_4(MSL_SWIZZLE_4, __VA_ARGS__)

#define MSL_SWIZZLES(n) \
  MSL_LETTERS_##n##_1(MSL_PAIR_1) MSL_LETTERS_##n##_1(MSL_TRIPLE_1) MSL_LETTERS_##n##_1(MSL_QUADRUPLE_1) \
  template <int... at, int k> \
  constexpr void write_swizzle(vec<T, k> v) { \
    static_assert((0 | ... | (1 << at)) == (0 + ... + (1 << at)), "a swizzle written to has a letter twice"); \
    int from = 0; \
    ((d[at] = v.d[from++]), ...); \
  }
