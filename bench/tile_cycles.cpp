// What the CPU's attend spends on a tile of 64 keys, step by step: all in L1, one thread, no torch. Prints rows of a table: cycles (of additions
// that wait for each other, one a cycle), the fifth percentile of many calls, beside the products alone at one vector instruction a cycle.
//
//   g++ -O3 -ffp-contract=off -std=c++17 -Wno-psabi -DINT4KV_SET=avx512 -include csrc/cpu/kernels_avx512.cpp bench/tile_cycles.cpp -o tile_cycles
//   ./tile_cycles
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "../csrc/cpu/levels.cpp"

using namespace int4kv;
using namespace int4kv::INT4KV_SET;

namespace {

double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cycle() {
  constexpr int kAdditions = 4000;
  int x = 0;
  const double from = now();
#pragma GCC unroll 20
  for (int i = 0; i < kAdditions; ++i) asm volatile("" : "+r"(++x));
  return (now() - from) / kAdditions;
}

template <typename Step>
double cycles_of(Step step) {
  constexpr int kSamples = 400, kCalls = 20;
  std::vector<double> found;
  for (int i = 0; i < kSamples; ++i) {
    const double length = cycle(), from = now();
    for (int call = 0; call < kCalls; ++call) step();
    found.push_back((now() - from) / kCalls / std::min(length, cycle()));
  }
  std::nth_element(found.begin(), found.begin() + kSamples / 20, found.end());
  return found[kSamples / 20];
}

struct Stored {
  std::vector<uint8_t> bytes;
  StoredTile tile{};

  explicit Stored(int head_dim) : bytes(kTile * head_dim / 2) {
    std::mt19937 generator(1);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
    tile.channel_stride = tile.groups = 1;
    tile.bits = 4;
    tile.codebook = INT4KV_LLOYD;
    for (int t = 0; t < kTile; ++t) {
      tile.rows[t] = bytes.data() + t * head_dim / 2;
      tile.scales[0][t] = static_cast<uint16_t>(0x211f + generator() % 0x680);
    }
  }
};

template <int rows>
void print_row(int head_dim) {
  const Stored k(head_dim), v(head_dim);
  const auto work = std::make_unique<Workspace>();
  const auto block = std::make_unique<QueryBlock>();
  std::mt19937 generator(2);
  std::normal_distribution<float> gaussian;
  work->tile.count = kTile;
  block->rows = rows;
  work->tile.head_dim = block->head_dim = head_dim;
  for (int r = 0; r < rows; ++r) {
    block->seen[r] = ~uint64_t{0};
    for (int c = 0; c < head_dim; ++c) block->q[r][c] = 0.1f * gaussian(generator);
  }
  start_block(*block);
  Tile& tile = work->tile;
  const double load_k = cycles_of([&] { load_side(k.tile, kTile, head_dim, true, work->widened, tile.k); });
  const double load_v = cycles_of([&] { load_side(v.tile, kTile, head_dim, false, work->widened, tile.v); });
  const double all = cycles_of([&] { attend_tile(*work, *block); });
  const auto score = score_codes<rows, true>;
  const auto accumulate = accumulate_codes<rows, true>;
  const double scores = cycles_of([&] { score(tile, *block, work->ahead, work->weights.p); });
  const double sums = cycles_of([&] { accumulate(tile, work->weights, work->ahead, *block); });
  const int products = kTile * head_dim * rows / (2 * kLanes);
  std::printf(
      "| %d heads, %d | %.0f | %.0f | %.0f (%d) | %.0f | %.0f (%d) | %.0f |\n", rows, head_dim, load_k, load_v, scores, products,
      all - scores - sums, sums, products, (load_k + load_v + all) / kTile);
}

} // namespace

int main() {
  std::printf("| %s | K's codes loaded | V's | scores (products alone) | weights | sums (products alone) | a key |\n|---|---|---|---|---|---|---|\n",
              kKernels.name);
  print_row<6>(128);
  print_row<7>(128);
  print_row<7>(64);
  print_row<4>(256);
}
