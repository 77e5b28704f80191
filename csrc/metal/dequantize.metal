// dequantize: codes or plain rows -> scale -> rotate back -> add the centre. A simdgroup owns one row, as rows.h draws it;
// grid: batch * heads * tokens, the token fastest.
#include "codebook.h"
#include "planes.h"
#include "rotation.h"

template <int U>
inline void read_stored(
    constant Int4kvStored& stored, const device void* codes, const device half* scales, uint batch, uint head, uint slot, uint lane,
    thread float* x) {
  long row = row_offset(stored.codes, batch, head, slot), scale = row_offset(stored.scales, batch, head, slot);
  if (stored.groups == 0) return load_row(codes, stored.codes, row, U, lane, x);
  for (uint u = 0; u < U; u++) {
    long group = long(u * stored.groups / U), step = stored.scales.channel;
    float level = level_of(unpack((const device uchar*)codes + row, U, u, stored.bits, lane), stored.bits, stored.codebook);
    if (stored.codebook == INT4KV_ASYMMETRIC) {
      x[u] = float(scales[scale + 2 * group * step]) * level + float(scales[scale + (2 * group + 1) * step]);
    } else {
      x[u] = float(scales[scale + group * step]) * level;
    }
  }
}

template <int U>
[[kernel]] void dequantize(
    const device void* codes [[buffer(0)]], const device half* scales [[buffer(1)]], const device float* centre [[buffer(2)]],
    const device float* rotation [[buffer(3)]], device void* out [[buffer(4)]], constant Int4kvDequantize& p [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  uint token = row % p.tokens, head = row / p.tokens % p.heads, batch = row / p.tokens / p.heads;
  float x[kMaxUnits];
  await_tensors();
  RowRegisters signs = signs_of(p.rotation, rotation, U, lane);
  read_stored<U>(p.stored, codes, scales, batch, head, slot_of(p.stored.first_slot, token, p.stored.capacity), lane, x);
  unrotate(x, p.rotation, rotation, signs, head, U, lane);
  if (p.has_centre) {
    float mean[kMaxUnits];
    load_row(centre, p.centre, row_offset(p.centre, batch, head, 0), U, lane, mean);
    for (uint u = 0; u < U; u++) x[u] = x[u] + mean[u];
  }
  store_row(out, p.out, row_offset(p.out, batch, head, token), U, lane, x);
}

INT4KV_ENTRY(dequantize_32, 1, dequantize<1>)
INT4KV_ENTRY(dequantize_64, 1, dequantize<2>)
INT4KV_ENTRY(dequantize_96, 1, dequantize<3>)
INT4KV_ENTRY(dequantize_128, 1, dequantize<4>)
INT4KV_ENTRY(dequantize_160, 1, dequantize<5>)
INT4KV_ENTRY(dequantize_192, 1, dequantize<6>)
INT4KV_ENTRY(dequantize_224, 1, dequantize<7>)
INT4KV_ENTRY(dequantize_256, 1, dequantize<8>)
