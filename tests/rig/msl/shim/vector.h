// vec<T, n>, packed vectors, their operators, as_type and array.
#pragma once
#include "swizzles.h"
#include "traits.h"

namespace metal {

template <typename T, int n>
struct vec;
template <typename T, int n>
struct packed_vec;

}  // namespace metal

namespace msl {

template <typename T>
struct VectorTraits {
  using scalar = T;
  static constexpr int size = 1;
};
template <typename T, int n>
struct VectorTraits<metal::vec<T, n>> {
  using scalar = T;
  static constexpr int size = n;
};
template <typename T, int n>
struct VectorTraits<metal::packed_vec<T, n>> : VectorTraits<metal::vec<T, n>> {};

template <typename... Parts>
constexpr int total_size = (0 + ... + VectorTraits<Parts>::size);
template <typename S>
using if_scalar = metal::enable_if_t<metal::is_arithmetic_v<S>>;

}  // namespace msl

namespace metal {

template <typename T>
constexpr bool is_vector_v = msl::VectorTraits<T>::size > 1;
template <typename T>
struct is_vector : bool_constant<is_vector_v<T>> {};
template <typename T>
using make_scalar_t = typename msl::VectorTraits<T>::scalar;
template <typename T>
struct make_scalar {
  using type = make_scalar_t<T>;
};

// The constructors that every width has: nothing, one scalar for all, a conversion, and parts that add up to n.
#define MSL_VECTOR_BODY(n)                                                                 \
  vec() = default;                                                                         \
  template <typename S, typename = msl::if_scalar<S>>                                      \
  constexpr vec(S s) : d{} {                                                               \
    for (int i = 0; i < n; i++) d[i] = static_cast<T>(s);                                  \
  }                                                                                        \
  template <typename U, typename = enable_if_t<!is_same_v<U, T>>>                          \
  constexpr explicit vec(vec<U, n> v) : d{} {                                              \
    for (int i = 0; i < n; i++) d[i] = static_cast<T>(v.d[i]);                             \
  }                                                                                        \
  template <typename U>                                                                    \
  constexpr explicit vec(packed_vec<U, n> v) : vec(static_cast<vec<U, n>>(v)) {}           \
  template <typename A, typename B, typename... Rest,                                      \
            typename = enable_if_t<msl::total_size<A, B, Rest...> == n>>                   \
  constexpr vec(A a, B b, Rest... rest) : d{} {                                            \
    int at = 0;                                                                            \
    append(at, a), append(at, b), (append(at, rest), ...);                                 \
  }                                                                                        \
  constexpr T& operator[](int i) { return d[i]; }                                          \
  constexpr const T& operator[](int i) const { return d[i]; }                              \
  template <typename A>                                                                    \
  constexpr void append(int& at, A a) {                                                    \
    if constexpr (is_vector_v<A>) {                                                        \
      for (int i = 0; i < msl::VectorTraits<A>::size; i++) d[at++] = static_cast<T>(a[i]); \
    } else {                                                                               \
      d[at++] = static_cast<T>(a);                                                         \
    }                                                                                      \
  }

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T d[2];
    struct { T x, y; };
    struct { T r, g; };
  };
  MSL_VECTOR_BODY(2)
  MSL_SWIZZLES(2)
};
template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T d[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
  };
  MSL_VECTOR_BODY(3)
  MSL_SWIZZLES(3)
};
template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T d[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
  };
  MSL_VECTOR_BODY(4)
  MSL_SWIZZLES(4)
};

// Elements without padding or alignment; everything but access to elements goes through vec.
template <typename T, int n>
struct packed_vec {
  T d[n];

  packed_vec() = default;
  constexpr packed_vec(vec<T, n> v) : d{} {
    for (int i = 0; i < n; i++) d[i] = v.d[i];
  }
  template <typename A, typename B, typename... Rest>
  constexpr packed_vec(A a, B b, Rest... rest) : packed_vec(vec<T, n>(a, b, rest...)) {}
  constexpr operator vec<T, n>() const {
    vec<T, n> v{};
    for (int i = 0; i < n; i++) v.d[i] = d[i];
    return v;
  }
  constexpr T& operator[](int i) { return d[i]; }
  constexpr const T& operator[](int i) const { return d[i]; }

#define MSL_COMPONENT(letter, i)                    \
  constexpr T get_##letter() const { return d[i]; } \
  constexpr void put_##letter(T s) { d[i] = s; }    \
  __declspec(property(get = get_##letter, put = put_##letter)) T letter;
  MSL_COMPONENT(x, 0) MSL_COMPONENT(y, 1) MSL_COMPONENT(z, 2) MSL_COMPONENT(w, 3)
#undef MSL_COMPONENT
};

#define MSL_BINARY(op)                                                     \
  template <typename T, int n>                                             \
  constexpr vec<T, n> operator op(vec<T, n> a, vec<T, n> b) {              \
    for (int i = 0; i < n; i++) a.d[i] = static_cast<T>(a.d[i] op b.d[i]); \
    return a;                                                              \
  }                                                                        \
  template <typename T, int n, typename S, typename = msl::if_scalar<S>>   \
  constexpr vec<T, n> operator op(vec<T, n> a, S s) {                      \
    return a op vec<T, n>(s);                                              \
  }                                                                        \
  template <typename T, int n, typename S, typename = msl::if_scalar<S>>   \
  constexpr vec<T, n> operator op(S s, vec<T, n> b) {                      \
    return vec<T, n>(s) op b;                                              \
  }                                                                        \
  template <typename T, int n, typename S>                                 \
  constexpr vec<T, n>& operator op##=(vec<T, n>& a, const S& b) {          \
    return a = a op b;                                                     \
  }
MSL_BINARY(+) MSL_BINARY(-) MSL_BINARY(*) MSL_BINARY(/) MSL_BINARY(%)
MSL_BINARY(&) MSL_BINARY(|) MSL_BINARY(^) MSL_BINARY(<<) MSL_BINARY(>>)
#undef MSL_BINARY

#define MSL_COMPARISON(op)                                               \
  template <typename T, int n>                                           \
  constexpr vec<bool, n> operator op(vec<T, n> a, vec<T, n> b) {         \
    vec<bool, n> result{};                                               \
    for (int i = 0; i < n; i++) result.d[i] = a.d[i] op b.d[i];          \
    return result;                                                       \
  }                                                                      \
  template <typename T, int n, typename S, typename = msl::if_scalar<S>> \
  constexpr vec<bool, n> operator op(vec<T, n> a, S s) {                 \
    return a op vec<T, n>(s);                                            \
  }                                                                      \
  template <typename T, int n, typename S, typename = msl::if_scalar<S>> \
  constexpr vec<bool, n> operator op(S s, vec<T, n> b) {                 \
    return vec<T, n>(s) op b;                                            \
  }
MSL_COMPARISON(<) MSL_COMPARISON(>) MSL_COMPARISON(<=) MSL_COMPARISON(>=)
MSL_COMPARISON(==) MSL_COMPARISON(!=) MSL_COMPARISON(&&) MSL_COMPARISON(||)
#undef MSL_COMPARISON

#define MSL_PREFIX(op)                                              \
  template <typename T, int n>                                      \
  constexpr vec<T, n> operator op(vec<T, n> a) {                    \
    for (int i = 0; i < n; i++) a.d[i] = static_cast<T>(op a.d[i]); \
    return a;                                                       \
  }
MSL_PREFIX(-) MSL_PREFIX(+) MSL_PREFIX(~)
#undef MSL_PREFIX
template <typename T, int n>
constexpr vec<bool, n> operator!(vec<T, n> a) {
  return a == vec<T, n>(T(0));
}
template <typename T, int n>
constexpr vec<T, n>& operator++(vec<T, n>& a) {
  return a += T(1);
}
template <typename T, int n>
constexpr vec<T, n>& operator--(vec<T, n>& a) {
  return a -= T(1);
}

#define MSL_NAMES(T)                      \
  using T##2 = vec<T, 2>;                 \
  using T##3 = vec<T, 3>;                 \
  using T##4 = vec<T, 4>;                 \
  using packed_##T##2 = packed_vec<T, 2>; \
  using packed_##T##3 = packed_vec<T, 3>; \
  using packed_##T##4 = packed_vec<T, 4>;
MSL_NAMES(bool) MSL_NAMES(char) MSL_NAMES(uchar) MSL_NAMES(short) MSL_NAMES(ushort) MSL_NAMES(int) MSL_NAMES(uint)
MSL_NAMES(long) MSL_NAMES(ulong) MSL_NAMES(half) MSL_NAMES(bfloat) MSL_NAMES(float)
#undef MSL_NAMES

template <typename T, size_t n>
struct array {
  T elements[n];
  constexpr T& operator[](size_t i) { return elements[i]; }
  constexpr const T& operator[](size_t i) const { return elements[i]; }
  constexpr size_t size() const { return n; }
};

template <typename To, typename From>
constexpr To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different sizes");
  return __builtin_bit_cast(To, value);
}

}  // namespace metal
