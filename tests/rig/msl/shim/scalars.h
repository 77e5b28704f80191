// Scalar types of the Metal Shading Language.
#pragma once

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = char;
using uint8_t = uchar;
using int16_t = short;
using uint16_t = ushort;
using int32_t = int;
using uint32_t = uint;
using int64_t = long;
using uint64_t = ulong;
using size_t = ulong;
using ptrdiff_t = long;
using intptr_t = long;
using uintptr_t = ulong;

using half = _Float16;  // rounded after every operation; needs -ffloat16-excess-precision=none

namespace msl {
template <bool condition>
struct OnlyIf {};
template <>
struct OnlyIf<true> {
  using type = int;
};
template <bool condition>
using only_if = typename OnlyIf<condition>::type;
}  // namespace msl

// Brain float: upper half of a float, rounded to nearest even after every operation.
struct bfloat {
  ushort bits;

  bfloat() = default;
  constexpr explicit bfloat(float x) : bits(rounded(x)) {}
  constexpr explicit bfloat(half x) : bits(rounded(x)) {}
  template <typename I, msl::only_if<__is_integral(I)> = 0>
  constexpr bfloat(I x) : bits(rounded(static_cast<float>(x))) {}
  constexpr operator float() const {
    return __builtin_bit_cast(float, static_cast<uint>(bits) << 16);
  }

 private:
  static constexpr ushort rounded(float x) {
    const uint word = __builtin_bit_cast(uint, x);
    const bool is_nan = (word & 0x7fffffff) > 0x7f800000;
    return is_nan ? (word >> 16) | 0x40 : (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  }
};

namespace msl {
template <typename T>
constexpr bool is_number = __is_arithmetic(T) || __is_same(T, bfloat);
template <typename A, typename B>
constexpr bool is_bfloat_pair = (__is_same(A, bfloat) || __is_same(B, bfloat)) && is_number<A> && is_number<B>;
// Type of a bfloat and another scalar under + - * /: float with float or half, bfloat with bfloat and integers.
template <typename A, typename B, only_if<is_bfloat_pair<A, B>> = 0>
constexpr auto bfloat_result() {
  if constexpr (__is_floating_point(A) || __is_floating_point(B)) return float();
  else return bfloat();
}
}  // namespace msl

#define MSL_BFLOAT_OPERATOR(op)                                                        \
  template <typename A, typename B, typename R = decltype(msl::bfloat_result<A, B>())> \
  constexpr R operator op(A a, B b) {                                                  \
    return R(static_cast<float>(a) op static_cast<float>(b));                          \
  }                                                                                    \
  template <typename B>                                                                \
  constexpr bfloat& operator op##=(bfloat& a, B b) {                                   \
    return a = bfloat(static_cast<float>(a) op static_cast<float>(b));                 \
  }
MSL_BFLOAT_OPERATOR(+) MSL_BFLOAT_OPERATOR(-) MSL_BFLOAT_OPERATOR(*) MSL_BFLOAT_OPERATOR(/)
#undef MSL_BFLOAT_OPERATOR

#define MSL_BFLOAT_COMPARISON(op)                                                \
  template <typename A, typename B, msl::only_if<msl::is_bfloat_pair<A, B>> = 0> \
  constexpr bool operator op(A a, B b) {                                         \
    return static_cast<float>(a) op static_cast<float>(b);                       \
  }
MSL_BFLOAT_COMPARISON(<) MSL_BFLOAT_COMPARISON(>) MSL_BFLOAT_COMPARISON(<=) MSL_BFLOAT_COMPARISON(>=)
MSL_BFLOAT_COMPARISON(==) MSL_BFLOAT_COMPARISON(!=)
#undef MSL_BFLOAT_COMPARISON

constexpr bfloat operator-(bfloat a) {
  return bfloat(-static_cast<float>(a));
}
