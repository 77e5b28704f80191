// Rows of fp32, fp16 or bf16 numbers, to and from float32.
struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

inline Floats load_numbers(const float* x) { return load(x); }
inline Floats load_numbers(const Half* x) { return halves_to_floats(&x->bits); }
inline Floats load_numbers(const Bfloat* x) { return from_bits(load_shorts(&x->bits) << 16); }

inline void store_numbers(float* to, Floats x) {
  store(to, x);
}

inline void store_numbers(Half* to, Floats x) {
  store_halves(&to->bits, x == x ? x : from_bits(splat(0x7fc00000)));
}

inline void store_numbers(Bfloat* to, Floats x) {
  const Ints bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
  store_shorts(&to->bits, (x == x ? rounded : splat(0x7fc00000)) >> 16 & 0xffff);
}

inline uint16_t to_half(float x) {
  Half halves[kLanes];
  store_numbers(halves, splat(x));
  return halves[0].bits;
}

inline float from_half(uint16_t x) {
  const uint16_t halves[kLanes] = {x};
  return halves_to_floats(halves)[0];
}

// The numbers where they lie or, `stride` bytes from one to the next, gathered.
template <typename T>
inline const T* gather_numbers(const char* from, int64_t stride, int64_t head_dim, T* gathered) {
  if (stride == sizeof(T)) return reinterpret_cast<const T*>(from);
  for (int64_t c = 0; c < head_dim; ++c) std::memcpy(gathered + c, from + c * stride, sizeof(T));
  return gathered;
}

template <typename T>
void load_row_of(const char* from, int64_t stride, int64_t head_dim, const float* centre, float* row) {
  T gathered[INT4KV_MAX_HEAD_DIM];
  const T* x = gather_numbers(from, stride, head_dim, gathered);
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    const Floats y = load_numbers(x + c);
    store(row + c, centre ? y - load(centre + c) : y);
  }
}

template <typename T>
void store_row_of(const float* row, const float* centre, int64_t head_dim, int64_t stride, char* to) {
  T together[INT4KV_MAX_HEAD_DIM];
  T* x = stride == sizeof(T) ? reinterpret_cast<T*>(to) : together;
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    const Floats y = load(row + c);
    store_numbers(x + c, centre ? y + load(centre + c) : y);
  }
  if (stride == sizeof(T)) return;
  for (int64_t c = 0; c < head_dim; ++c) std::memcpy(to + c * stride, together + c, sizeof(T));
}

inline void load_row(const char* from, int64_t stride, Number type, int64_t head_dim, const float* centre, float* row) {
  if (type == Number::kFloat32) return load_row_of<float>(from, stride, head_dim, centre, row);
  if (type == Number::kFloat16) return load_row_of<Half>(from, stride, head_dim, centre, row);
  load_row_of<Bfloat>(from, stride, head_dim, centre, row);
}

inline void store_row(const float* row, const float* centre, int64_t head_dim, Number type, int64_t stride, char* to) {
  if (type == Number::kFloat32) return store_row_of<float>(row, centre, head_dim, stride, to);
  if (type == Number::kFloat16) return store_row_of<Half>(row, centre, head_dim, stride, to);
  store_row_of<Bfloat>(row, centre, head_dim, stride, to);
}
