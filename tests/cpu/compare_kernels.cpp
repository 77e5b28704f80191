// Runs one set of CPU kernels and the portable ones on the same seeded inputs and compares every byte they write. No torch: it is compiled for
// another processor and run under an emulator, or with an instruction set that the processor lacks through SIMDe.
//
//   compare_kernels      prints "<set>: <n> comparisons" and exits with 0; or the first difference, and 1
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/format.h"
#include "../../csrc/cpu/kernels.h"

namespace int4kv {
namespace portable { extern const Kernels kKernels; }
namespace INT4KV_SET { extern const Kernels kKernels; }
}

namespace {

using namespace int4kv;

const Kernels& ours = INT4KV_SET::kKernels;
const Kernels& theirs = portable::kKernels;
int comparisons = 0;
std::mt19937 generator(1);

constexpr int64_t kHeadDims[] = {32, 64, 96, 128, 160, 192, 224, 256};

// Gaussian rows of changing size; now and then with zeros, with a channel beyond fp16, not finite or subnormal.
std::vector<float> make_row(int64_t n, int trial) {
  std::normal_distribution<float> gaussian;
  const float sizes[] = {1.0f, 300.0f, 1e-3f, 1e-20f, 1e-35f, 0.0f}, odd[] = {1e9f, INFINITY, -INFINITY, NAN, 1e-40f, -0.0f};
  std::vector<float> row(n);
  for (float& x : row) x = gaussian(generator) * sizes[trial % 6];
  if (trial % 4 == 3) row[generator() % n] = odd[trial / 4 % 6];
  return row;
}

// Which NaN a float32 result is depends on the processor: only that it is one counts.
std::vector<float> as_compared(std::vector<float> row) {
  for (float& x : row) x = x == x ? x : 0x1p-149f;
  return row;
}

template <typename T>
void same(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  ++comparisons;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) == 0) continue;
    std::printf("%s and portable differ at %zu, %.9g and %.9g: %s\n", ours.name, i, double(a[i]), double(b[i]), what.c_str());
    std::exit(1);
  }
}

template <typename Run>
void same_rows(int64_t n, const std::string& what, Run run) {
  std::vector<float> a(n), b(n);
  run(ours, a.data());
  run(theirs, b.data());
  same(as_compared(a), as_compared(b), what);
}

template <typename Run>
void same_bytes(int64_t n, const std::string& what, Run run) {
  std::vector<uint8_t> a(n, 0xAB), b(n, 0xAB);
  run(ours, a.data());
  run(theirs, b.data());
  same(a, b, what);
}

// ---- rows in and out ---------------------------------------------------------------------------------------------------------------------

void compare_every_fp16_number() {
  std::vector<uint16_t> halves(65536);
  for (int i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  for (const Number type : {Number::kFloat16, Number::kBfloat16}) {
    for (int64_t i = 0; i < 65536; i += 256) {
      const char* from = reinterpret_cast<const char*>(halves.data() + i);
      same_rows(256, "load_row of 16-bit numbers from " + std::to_string(i),
                [&](const Kernels& k, float* row) { k.load_row(from, 2, type, 256, nullptr, row); });
    }
  }
}

// Around every rounding border of fp16 and bf16: random bits below, and all three neighbours of each border.
void compare_rounding() {
  for (int trial = 0; trial < 4000; ++trial) {
    std::vector<float> row(64);
    for (float& x : row) {
      uint32_t bits = static_cast<uint32_t>(generator());
      if (trial % 2) bits = (bits & 0xffffe000u) + 0x1000 + static_cast<uint32_t>(generator() % 3) - 1;
      std::memcpy(&x, &bits, 4);
    }
    for (const Number type : {Number::kFloat16, Number::kBfloat16}) {
      same_bytes(128, "store_row, trial " + std::to_string(trial), [&](const Kernels& k, uint8_t* to) {
        k.store_row(row.data(), nullptr, 64, type, 2, reinterpret_cast<char*>(to));
      });
    }
  }
}

void compare_strides_and_centres(int64_t n) {
  const std::vector<float> numbers = make_row(3 * n, 0), centre = make_row(n, 0);
  for (const Number type : {Number::kFloat32, Number::kFloat16, Number::kBfloat16}) {
    for (const int64_t stride : {2, 4, 6, 12}) {
      if (type == Number::kFloat32 && stride % 4) continue;
      same_rows(n, "load_row", [&](const Kernels& k, float* row) {
        k.load_row(reinterpret_cast<const char*>(numbers.data()), stride, type, n, centre.data(), row);
      });
      same_bytes(12 * n, "store_row", [&](const Kernels& k, uint8_t* to) {
        k.store_row(numbers.data(), centre.data(), n, type, stride, reinterpret_cast<char*>(to));
      });
    }
  }
}

// ---- rotations ---------------------------------------------------------------------------------------------------------------------------

void compare_rotations(int64_t n) {
  const std::vector<float> row = make_row(n, 0), matrix = make_row(n * n, 0), signs = make_row(n, 0);
  for (int64_t block = 2; block <= n; block *= 2) {
    if (n % block) continue;
    for (const auto turn : {&Kernels::rotate, &Kernels::unrotate}) {
      same_rows(n, "blocks of " + std::to_string(block), [&](const Kernels& k, float* to) {
        std::memcpy(to, row.data(), n * sizeof(float));
        (k.*turn)(to, n, block, signs.data());
      });
    }
  }
  for (const auto turn : {&Kernels::multiply, &Kernels::multiply_transposed}) {
    same_rows(n, "matrix", [&](const Kernels& k, float* to) {
      std::memcpy(to, row.data(), n * sizeof(float));
      (k.*turn)(to, n, matrix.data());
    });
  }
}

// Three rows, whose numbers lie side by side or two apart.
void compare_load_rotated(int64_t n) {
  const std::vector<float> numbers = make_row(6 * n, 0), centre = make_row(n, 0), signs = make_row(n, 0);
  for (const Number type : {Number::kFloat32, Number::kFloat16, Number::kBfloat16}) {
    const int64_t size = type == Number::kFloat32 ? 4 : 2;
    for (int64_t block = 2; block <= n; block *= 2) {
      if (n % block) continue;
      for (const int64_t stride : {size, 2 * size}) {
        same_rows(3 * n, "load_rotated, blocks of " + std::to_string(block), [&](const Kernels& k, float* to) {
          const char* from = reinterpret_cast<const char*>(numbers.data());
          k.load_rotated(from, 2 * size * n, stride, type, 3, n, stride == size ? nullptr : centre.data(), block, signs.data(), to);
        });
      }
    }
  }
}

// ---- codes -------------------------------------------------------------------------------------------------------------------------------

void compare_codes(const Packing& by, int trial) {
  const std::string what = "head_dim " + std::to_string(by.head_dim) + ", groups of " + std::to_string(by.group_size) + ", " +
                           std::to_string(by.bits) + " bits, codebook " + std::to_string(by.codebook) + ", trial " + std::to_string(trial);
  const int64_t count = trial % kRowsTogether + 1, bytes = by.head_dim * by.bits / 8;
  const int64_t stored = by.head_dim / by.group_size * (by.codebook == INT4KV_ASYMMETRIC ? 2 : 1);
  std::vector<float> rows;
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<float> row = make_row(by.head_dim, trial + static_cast<int>(5 * i));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  std::vector<uint16_t> scales(count * stored);
  std::vector<uint8_t> codes(count * bytes);
  std::vector<uint8_t*> places;
  for (int64_t i = 0; i < count; ++i) places.push_back(codes.data() + i * bytes);
  same_bytes(count * (bytes + 2 * stored), "encode, " + what, [&](const Kernels& k, uint8_t* to) {
    k.encode(rows.data(), count, by, places.data(), scales.data());
    std::memcpy(to, codes.data(), count * bytes);
    std::memcpy(to + count * bytes, scales.data(), 2 * count * stored);
  });
  same_rows(by.head_dim, "decode, " + what, [&](const Kernels& k, float* to) { k.decode(codes.data(), scales.data(), by, to); });
}

void compare_packings(int64_t head_dim) {
  for (const int bits : {3, 4, 5, 8}) {
    for (const int codebook : {INT4KV_UNIFORM, INT4KV_LLOYD, INT4KV_ABSMAX, INT4KV_ASYMMETRIC}) {
      for (const int64_t group_size : {int64_t{32}, int64_t{64}, int64_t{128}, head_dim}) {
        if (head_dim % group_size) continue;
        for (int trial = 0; trial < 48; ++trial) compare_codes({head_dim, group_size, bits, codebook}, trial);
      }
    }
  }
}

} // namespace

// Every member of Kernels is compared by a section above and a line here.
int main() {
  compare_every_fp16_number();
  compare_rounding();
  for (const int64_t head_dim : kHeadDims) {
    compare_strides_and_centres(head_dim);
    compare_rotations(head_dim);
    compare_load_rotated(head_dim);
    compare_packings(head_dim);
  }
  std::printf("%s: %d comparisons\n", ours.name, comparisons);
}
