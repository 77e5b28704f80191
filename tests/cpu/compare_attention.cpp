// Runs attend's kernels of one set and the portable ones over the same seeded tiles and compares the finished rows. The products are exact
// integers everywhere; exponentials differ in their last bits, which may move a weight by one of its 32767 steps.
//
//   compare_attention      prints "<set>: <n> comparisons" and exits with 0; or the first difference, and 1
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace int4kv {
namespace portable { extern const Kernels kKernels; }
namespace INT4KV_SET { extern const Kernels kKernels; }
}

namespace {

using namespace int4kv;

constexpr float kTolerance = 1e-4f;  // of a row's largest channel: three steps of 1 / 32767
constexpr int kTiles = 2;
std::mt19937 generator(1);

struct Case {
  int head_dim, rows, count, k_bits, v_bits, codebook, group_size;
  bool k_plain, v_plain, masked;
  float softcap;
  Number type;     // of plain rows
  int apart;       // channels of a plain row, in numbers
};

int pick(std::initializer_list<int> from) {
  return from.begin()[generator() % from.size()];
}

Case make_case() {
  Case c{pick({32, 64, 96, 128, 160, 256}), pick({1, 2, 3, 4, 5, 6, 7, 8}), pick({1, 3, 4, 15, 16, 17, 31, 32, 33, 63, 64}), pick({3, 4, 4, 5, 8}),
         pick({3, 4, 4, 5, 8}), pick({0, 1, 1, 2, 3}), 0, pick({0, 0, 0, 1}) == 1, pick({0, 0, 0, 1}) == 1, pick({0, 0, 1}) == 1,
         pick({0, 0, 0, 30}) * 1.0f, static_cast<Number>(pick({0, 1, 2})), pick({1, 1, 3})};
  c.group_size = pick({c.head_dim, c.head_dim, 32});
  return c;
}

// 1 to 2 or -2 to -1 in steps of 1 / 128, exact in every type.
void write_number(Number type, uint8_t* to) {
  const uint32_t sign = generator() & 1, fraction = generator() & 127;
  const uint32_t single = sign << 31 | 127u << 23 | fraction << 16, half = sign << 15 | 15u << 10 | fraction << 3, brain = single >> 16;
  if (type == Number::kFloat32) std::memcpy(to, &single, 4);
  else std::memcpy(to, type == Number::kFloat16 ? &half : &brain, 2);
}

// Random codes, scales between 0.01 and 0.03, or plain rows.
struct Side {
  std::vector<uint8_t> bytes;
  StoredTile tile{};

  Side(const Case& c, int bits, bool plain) {
    const int number = c.apart * (c.type == Number::kFloat32 ? 4 : 2);
    bytes.resize(kTile * c.head_dim * (plain ? number : 1));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
    for (size_t i = 0; plain && i < bytes.size(); i += number) write_number(c.type, &bytes[i]);
    tile.plain = plain;
    tile.type = c.type;
    tile.channel_stride = number;
    tile.bits = bits;
    tile.codebook = c.codebook;
    tile.groups = plain ? 0 : c.head_dim / c.group_size;
    for (int t = 0; t < kTile; ++t) {
      tile.rows[t] = bytes.data() + (t < c.count ? t : c.count - 1) * (plain ? number * c.head_dim : c.head_dim * bits / 8);
      for (int g = 0; g < tile.groups; ++g) {
        tile.scales[g][t] = static_cast<uint16_t>(0x211f + generator() % 0x680);
        tile.minima[g][t] = static_cast<uint16_t>(0x9000 + generator() % 0x1000);
      }
    }
  }
};

QueryBlock make_block(const Case& c) {
  QueryBlock block{};
  std::normal_distribution<float> gaussian;
  block.rows = c.rows;
  block.head_dim = c.head_dim;
  block.softcap = c.softcap;
  for (int r = 0; r < c.rows; ++r) {
    const uint64_t all = c.count == 64 ? ~uint64_t{0} : (uint64_t{1} << c.count) - 1;
    block.seen[r] = c.masked ? all & (uint64_t{generator()} << 32 | generator()) : all;
    for (int i = 0; i < c.head_dim; ++i) block.q[r][i] = gaussian(generator) * 0.3f;
  }
  return block;
}

QueryBlock attend(const Kernels& kernels, const Case& c, const std::vector<Side>& sides, QueryBlock block, float* totals) {
  auto work = std::make_unique<Workspace>();
  work->tile.head_dim = c.head_dim;
  work->tile.count = c.count;
  kernels.start_block(block);
  for (int i = 0; i < kTiles; ++i) {
    kernels.load_tile(sides[2 * i].tile, sides[2 * i + 1].tile, *work);
    kernels.attend_tile(*work, block);
  }
  kernels.finish_block(block, c.v_plain ? 1 : c.head_dim / c.group_size, totals);
  return block;
}

bool same(const QueryBlock& a, const QueryBlock& b, const float* a_totals, const float* b_totals) {
  for (int r = 0; r < a.rows; ++r) {
    float most = 0.0f, apart = 0.0f;
    for (int i = 0; i < a.head_dim; ++i) {
      most = std::fmax(most, std::fabs(b.o[r][i]));
      apart = std::fmax(apart, std::fabs(a.o[r][i] - b.o[r][i]));
    }
    if (!(apart <= kTolerance * most) || !(std::fabs(a_totals[r] - b_totals[r]) <= kTolerance * b_totals[r])) return false;
  }
  return true;
}

bool same_for(const Case& c) {
  std::vector<Side> sides;
  for (int i = 0; i < kTiles; ++i) {
    sides.emplace_back(c, c.k_bits, c.k_plain);
    sides.emplace_back(c, c.v_bits, c.v_plain);
  }
  const QueryBlock block = make_block(c);
  float ours[kBlockRows], theirs[kBlockRows];
  const QueryBlock a = attend(INT4KV_SET::kKernels, c, sides, block, ours), b = attend(portable::kKernels, c, sides, block, theirs);
  return same(a, b, ours, theirs);
}

} // namespace

int main() {
  constexpr int kCases = 3000;
  for (int i = 0; i < kCases; ++i) {
    const Case c = make_case();
    if (same_for(c)) continue;
    std::printf(
        "%s and portable differ: head_dim %d, %d rows, %d tokens, K %d bits%s, V %d bits%s, codebook %d, groups of %d%s, softcap %g\n",
        INT4KV_SET::kKernels.name, c.head_dim, c.rows, c.count, c.k_bits, c.k_plain ? " plain" : "", c.v_bits, c.v_plain ? " plain" : "",
        c.codebook, c.group_size, c.masked ? ", masked" : "", c.softcap);
    return 1;
  }
  std::printf("%s: %d comparisons\n", INT4KV_SET::kKernels.name, kCases);
}
