// Scalars, type traits and limits.
#pragma once

using schar = signed char;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;
using ptrdiff_t = long;

struct bfloat {
  bfloat() = default;
  constexpr bfloat(const __generic bfloat& other) = default;
  constexpr bfloat(const __constant bfloat& other) : bits(other.bits) {}
  constexpr bfloat(float) : bits(0) {}
  constexpr operator float() const __generic { return 0.0f; }
  constexpr operator float() const __constant { return 0.0f; }
  ushort bits;
};

namespace metal {

template <typename T, T v>
struct integral_constant {
  static constexpr __constant T value = v;
};
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;

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

template <typename T>
using remove_const_t = __remove_const(T);
template <typename T>
using remove_cv_t = __remove_cv(T);
template <typename T>
using remove_reference_t = __remove_reference_t(T);
template <typename T>
using decay_t = __decay(T);
template <typename T>
using make_unsigned_t = __make_unsigned(T);
template <typename T>
using make_signed_t = __make_signed(T);

#define METAL_TRAIT(name, value_)                           \
  template <typename T>                                     \
  constexpr __constant bool name##_v = value_;              \
  template <typename T>                                     \
  struct name : integral_constant<bool, value_> {};
METAL_TRAIT(is_integral, __is_integral(T))
template <typename T, typename U>
constexpr __constant bool is_unqualified_v = __is_same(__remove_cv(T), U);
METAL_TRAIT(is_floating_point, (is_unqualified_v<T, float> || is_unqualified_v<T, half> || is_unqualified_v<T, bfloat>))
METAL_TRAIT(is_arithmetic, (__is_integral(T) || is_floating_point_v<T>))
METAL_TRAIT(is_scalar, (is_arithmetic_v<T> || __is_enum(T)))
METAL_TRAIT(is_signed, (is_floating_point_v<T> || __is_signed(T)))
METAL_TRAIT(is_unsigned, __is_unsigned(T))
METAL_TRAIT(is_enum, __is_enum(T))
METAL_TRAIT(is_pointer, __is_pointer(T))
METAL_TRAIT(is_void, __is_void(T))
METAL_TRAIT(is_const, __is_const(T))
#undef METAL_TRAIT

template <typename A, typename B>
constexpr __constant bool is_same_v = __is_same(A, B);
template <typename A, typename B>
struct is_same : integral_constant<bool, __is_same(A, B)> {};
template <typename A, typename B>
constexpr __constant bool is_convertible_v = __is_convertible_to(A, B);

template <typename T>
struct numeric_limits {
  static constexpr __constant bool is_integer = is_integral_v<T>;
  static constexpr __constant int digits = sizeof(T) * 8;
  static constexpr T min() { return T(0); }
  static constexpr T max() { return T(1); }
  static constexpr T lowest() { return T(0); }
  static constexpr T epsilon() { return T(1); }
  static constexpr T infinity() { return T(1); }
  static constexpr T quiet_NaN() { return T(1); }
};

template <typename T>
T&& declval();

template <typename To, typename From>
To as_type(From);

}  // namespace metal
