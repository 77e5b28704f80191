// Work between the lanes of a vector, in the format's order.
template <int kApart, typename Vector, int... kLane>
inline Vector exchange(Vector x, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(x, x, (kLane ^ kApart)...);
}

// Lane i gets lane i ^ kApart.
template <int kApart, typename Vector>
inline Vector exchange(Vector x) {
  return exchange<kApart>(x, std::make_integer_sequence<int, kLanes>());
}

template <int kApart = kLanes / 2, typename Vector, typename Operation>
inline auto fold(Vector x, Operation operation) {
  x = operation(x, exchange<kApart>(x));
  if constexpr (kApart > 1) {
    return fold<kApart / 2>(x, operation);
  } else {
    return x[0];
  }
}

// Of every 2 kApart lanes the lower or the upper half, those of a below those of b.
template <int kApart, bool kUpper, typename Vector, int... kLane>
inline Vector interleave_lanes(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
  constexpr int kFrom = kUpper ? kApart : 0;
  return __builtin_shufflevector(a, b, ((kLane & kApart) ? kLanes + (kLane ^ kApart) + kFrom : kLane + kFrom)...);
}

template <int kApart, bool kUpper, typename Vector>
inline Vector interleave_lanes(Vector a, Vector b) {
  return interleave_lanes<kApart, kUpper>(a, b, std::make_integer_sequence<int, kLanes>());
}

// Lane i of the first kCount gets the lanes of x[i] joined as fold joins them.
template <int kCount, int kApart = 1, typename Vector, typename Operation>
inline Vector fold_each(const Vector* x, Operation operation) {
  if constexpr (kApart == kLanes) {
    return *x;
  } else {
    const Vector a = fold_each<kCount, 2 * kApart>(x, operation);
    if constexpr (kApart >= kCount) {
      return operation(a, exchange<kApart>(a));
    } else {
      const Vector b = fold_each<kCount, 2 * kApart>(x + kApart, operation);
      return operation(interleave_lanes<kApart, false>(a, b), interleave_lanes<kApart, true>(a, b));
    }
  }
}

template <typename Vector>
inline auto largest_lane(Vector x) {
  return fold(x, [](Vector a, Vector b) { return a > b ? a : b; });
}

inline float sum_of_lanes(Floats x) {
  return fold(x, [](Floats a, Floats b) { return a + b; });
}

inline float smallest_lane(Floats x) {
  return fold(x, [](Floats a, Floats b) { return a < b ? a : b; });
}

// lane_sum of format.h: the 32 lanes that products of channels are added to. Vector i has the lanes from i * kLanes on.
struct LaneSum {
  static constexpr int kVectors = INT4KV_UNIT / kLanes;
  Floats lanes[kVectors] = {};

  float total() const {
    return sum_of_lanes(folded(lanes));
  }

  // What is left for fold.
  static Floats folded(const Floats* lanes) {
    Floats x[kVectors];
    for (int i = 0; i < kVectors; ++i) x[i] = lanes[i];
    for (int half = kVectors / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x[i] += x[i + half];
    }
    return x[0];
  }
};

// max |x|, an infinity or a NaN where there is one: as integers, magnitudes order as they do as numbers.
inline float largest_of(const float* x, int64_t n) {
  Ints lanes[LaneSum::kVectors] = {};
  for (int64_t c = 0; c < n; c += INT4KV_UNIT) {
#pragma GCC unroll 8
    for (int i = 0; i < LaneSum::kVectors; ++i) {
      const Ints magnitude = bits_of(magnitude_of(load(x + c + i * kLanes)));
      lanes[i] = magnitude > lanes[i] ? magnitude : lanes[i];
    }
  }
  Ints largest = lanes[0];
  for (int i = 1; i < LaneSum::kVectors; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  const int32_t most = largest_lane(largest);
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}
