// <metal_type_traits> and <metal_limits>.
#pragma once
#include "scalars.h"

namespace metal {

template <typename T, T v>
struct integral_constant {
  static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool condition, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
  using type = T;
};
template <bool condition, typename T = void>
using enable_if_t = typename enable_if<condition, T>::type;

template <bool condition, typename A, typename B>
struct conditional {
  using type = A;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool condition, typename A, typename B>
using conditional_t = typename conditional<condition, A, B>::type;

#define MSL_TRANSFORMATION(name, builtin) \
  template <typename T>                   \
  struct name {                           \
    using type = builtin(T);              \
  };                                      \
  template <typename T>                   \
  using name##_t = builtin(T);
MSL_TRANSFORMATION(remove_const, __remove_const)
MSL_TRANSFORMATION(remove_volatile, __remove_volatile)
MSL_TRANSFORMATION(remove_cv, __remove_cv)
MSL_TRANSFORMATION(remove_reference, __remove_reference_t)
MSL_TRANSFORMATION(remove_pointer, __remove_pointer)
MSL_TRANSFORMATION(decay, __decay)
MSL_TRANSFORMATION(make_unsigned, __make_unsigned)
MSL_TRANSFORMATION(make_signed, __make_signed)
MSL_TRANSFORMATION(underlying_type, __underlying_type)
#undef MSL_TRANSFORMATION

#define MSL_PREDICATE(name, value_) \
  template <typename T>             \
  constexpr bool name##_v = value_; \
  template <typename T>             \
  struct name : bool_constant<value_> {};
MSL_PREDICATE(is_void, __is_void(T))
MSL_PREDICATE(is_const, __is_const(T))
MSL_PREDICATE(is_enum, __is_enum(T))
MSL_PREDICATE(is_class, __is_class(T))
MSL_PREDICATE(is_empty, __is_empty(T))
MSL_PREDICATE(is_array, __is_array(T))
MSL_PREDICATE(is_pointer, __is_pointer(T))
MSL_PREDICATE(is_reference, __is_reference(T))
MSL_PREDICATE(is_trivially_copyable, __is_trivially_copyable(T))
MSL_PREDICATE(is_integral, __is_integral(T))
MSL_PREDICATE(is_unsigned, __is_unsigned(T))
MSL_PREDICATE(is_floating_point, (__is_floating_point(T) || __is_same(__remove_cv(T), bfloat)))
MSL_PREDICATE(is_signed, (is_floating_point_v<T> || __is_signed(T)))
MSL_PREDICATE(is_arithmetic, (is_floating_point_v<T> || __is_integral(T)))
MSL_PREDICATE(is_scalar, (is_arithmetic_v<T> || __is_enum(T)))
#undef MSL_PREDICATE

#define MSL_RELATION(name, value_)  \
  template <typename A, typename B> \
  constexpr bool name##_v = value_; \
  template <typename A, typename B> \
  struct name : bool_constant<value_> {};
MSL_RELATION(is_same, __is_same(A, B))
MSL_RELATION(is_base_of, __is_base_of(A, B))
MSL_RELATION(is_convertible, __is_convertible_to(A, B))
#undef MSL_RELATION

template <typename T, typename... A>
constexpr bool is_constructible_v = __is_constructible(T, A...);
template <typename T, uint n = 0>
constexpr uint extent_v = __array_extent(T, n);
template <typename T>
T&& declval() noexcept;

template <typename...>
struct disjunction : false_type {};
template <typename A, typename... Rest>
struct disjunction<A, Rest...> : conditional_t<bool(A::value), A, disjunction<Rest...>> {};
template <typename...>
struct conjunction : true_type {};
template <typename A, typename... Rest>
struct conjunction<A, Rest...> : conditional_t<bool(A::value), conjunction<Rest...>, A> {};

template <typename T>
struct numeric_limits {
  static constexpr bool is_specialized = false;
};

}  // namespace metal

namespace msl {

template <typename T>
struct IntegerLimits {
  static constexpr bool is_specialized = true, is_signed = T(-1) < T(0), is_integer = true, has_infinity = false;
  static constexpr int digits = sizeof(T) * 8 - is_signed;
  static constexpr T min() { return is_signed ? T(T(1) << (sizeof(T) * 8 - 1)) : T(0); }
  static constexpr T max() { return T(~min()); }
  static constexpr T lowest() { return min(); }
};

}  // namespace msl

namespace metal {

#define MSL_INTEGER(T) \
  template <>          \
  struct numeric_limits<T> : msl::IntegerLimits<T> {};
MSL_INTEGER(char) MSL_INTEGER(uchar) MSL_INTEGER(short) MSL_INTEGER(ushort)
MSL_INTEGER(int) MSL_INTEGER(uint) MSL_INTEGER(long) MSL_INTEGER(ulong)
#undef MSL_INTEGER

template <>
struct numeric_limits<bool> {
  static constexpr bool is_specialized = true, is_signed = false, is_integer = true, has_infinity = false;
  static constexpr int digits = 1;
  static constexpr bool min() { return false; }
  static constexpr bool max() { return true; }
  static constexpr bool lowest() { return false; }
};

#define MSL_FLOATING(T, digits_, max_, min_, epsilon_)                                                      \
  template <>                                                                                               \
  struct numeric_limits<T> {                                                                                \
    static constexpr bool is_specialized = true, is_signed = true, is_integer = false, has_infinity = true; \
    static constexpr int digits = digits_;                                                                  \
    static constexpr T max() { return T(max_); }                                                            \
    static constexpr T min() { return T(min_); }                                                            \
    static constexpr T lowest() { return T(-max_); }                                                        \
    static constexpr T epsilon() { return T(epsilon_); }                                                    \
    static constexpr T infinity() { return T(__builtin_inff()); }                                           \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                                        \
  };
MSL_FLOATING(float, 24, 0x1.fffffep127f, 0x1p-126f, 0x1p-23f)
MSL_FLOATING(half, 11, 65504.0f, 0x1p-14f, 0x1p-10f)
MSL_FLOATING(bfloat, 8, 0x1.fep127f, 0x1p-126f, 0x1p-7f)
#undef MSL_FLOATING

}  // namespace metal
