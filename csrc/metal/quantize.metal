// quantize: x -> centre -> rotate -> scale -> round -> pack, straight into the cache; codes and scales are format.h's bits.
//
// One dispatch serves K and V of all heads: a simdgroup owns one row (one token of one head of one side) in registers, as rows.h
// draws it, and reads it once. Butterflies and sums are shuffles; there is no threadgroup memory and no barrier. A decode step's few
// rows run through the code once, which may take longer to come than to run: both sides share it.
// Row r of the grid: side = r / rows, then batch, head and token of r % rows, the token fastest. Into pages, `slots` say where each token
// goes; one without a slot, or with one that does not exist, is not written.
#include "codebook.h"
#include "pages.h"
#include "planes.h"
#include "rotation.h"

// Scale number g of a row, and its minimum if there is one.
inline void write_scale(
    GroupScale found, constant Int4kvStored& stored, long scales_row, uint g, device half* scales, uint lane) {
  uint each = stored.codebook == INT4KV_ASYMMETRIC ? 2 : 1;
  half pair[2] = {half(found.scale), half(found.minimum)};
  bool broken = !isfinite(pair[0]) || !isfinite(pair[1]);
  if (lane >= each) return;
  half kept = lane == 0 ? pair[0] : pair[1];
  scales[scales_row + long(each * g + lane) * stored.scales.channel] = broken ? as_type<half>(ushort(INT4KV_FP16_NAN)) : kept;
}

template <int U>
inline void write_packed(
    const thread float* x, constant Int4kvStored& stored, long codes_row, long scales_row, device uchar* codes, device half* scales,
    uint lane) {
  uint code[U], size = U / stored.groups;
  if (stored.groups == 1) {
    write_scale(encode<U>(x, WholeRow{}, stored.bits, stored.codebook, lane, code), stored, scales_row, 0, scales, lane);
  } else {
    for (uint g = 0, first = 0; g < stored.groups; g++, first += size) {
      write_scale(encode<U>(x, Group{first, size}, stored.bits, stored.codebook, lane, code), stored, scales_row, g, scales, lane);
    }
  }
  pack<U>(code, stored.bits, lane, codes + codes_row);
}

// Where a row's codes and its exact copy go.
struct Destination {
  Slot stored, recent;
};

inline Destination destination_of(
    constant Int4kvQuantize& p, constant Int4kvQuantizeSide& side, const device long* slots, const device long* recent_slots, uint batch,
    uint token) {
  Destination to;
  if (paged) {
    to.stored = numbered_slot(slots[token], side.stored.capacity, p.slots);
    to.recent = numbered_slot(p.recent_slots > 0 ? recent_slots[token] : -1, side.recent_rows, p.recent_slots);
  } else {
    to.stored = {batch, slot_of(side.stored.first_slot, token, side.stored.capacity), true};
    to.recent = {batch, 0, token + side.recent_rows >= p.tokens && side.recent_rows > 0};
    if (to.recent.is_there) to.recent.slot = (side.recent_first_slot + token) % side.recent_rows;
  }
  return to;
}

template <int U>
inline void quantize_row(
    constant Int4kvQuantizeSide& side, const device void* x, device void* codes, device half* scales, device void* recent,
    const device float* centre, const device float* rotation, uint batch, uint head, uint token, Destination to, uint lane) {
  float row[kMaxUnits];
  RowRegisters signs = signs_of(side.rotation, rotation, U, lane);
  load_row(x, side.x, row_offset(side.x, batch, head, token), U, lane, row);
  if (side.has_centre) {
    float mean[kMaxUnits];
    load_row(centre, side.centre, row_offset(side.centre, batch, head, 0), U, lane, mean);
    for (uint u = 0; u < U; u++) row[u] = row[u] - mean[u];
  }
  rotate(row, side.rotation, rotation, signs, head, U, lane);
  if (to.recent.is_there) store_row(recent, side.recent, row_offset(side.recent, to.recent.batch, head, to.recent.slot), U, lane, row);
  if (!to.stored.is_there) return;
  long codes_row = row_offset(side.stored.codes, to.stored.batch, head, to.stored.slot);
  if (side.stored.groups > 0) {
    long scales_row = row_offset(side.stored.scales, to.stored.batch, head, to.stored.slot);
    write_packed<U>(row, side.stored, codes_row, scales_row, (device uchar*)codes, scales, lane);
  } else {
    store_row(codes, side.stored.codes, codes_row, U, lane, row);
  }
}

template <int U>
[[kernel]] void quantize(
    const device void* k [[buffer(0)]], device void* k_codes [[buffer(1)]], device half* k_scales [[buffer(2)]],
    device void* k_recent [[buffer(3)]], const device float* k_centre [[buffer(4)]], const device float* k_rotation [[buffer(5)]],
    const device void* v [[buffer(6)]], device void* v_codes [[buffer(7)]], device half* v_scales [[buffer(8)]],
    device void* v_recent [[buffer(9)]], const device float* v_centre [[buffer(10)]], const device float* v_rotation [[buffer(11)]],
    const device long* slots [[buffer(12)]], const device long* recent_slots [[buffer(13)]], constant Int4kvQuantize& p [[buffer(14)]],
    uint group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint number = group * INT4KV_QUANTIZE_SIMDGROUPS + simdgroup;
  if (number >= p.rows << p.both) return;
  bool is_v = number >= p.rows;
  uint row = is_v ? number - p.rows : number, token = row % p.tokens, head = row / p.tokens % p.heads, batch = row / p.tokens / p.heads;
  constant Int4kvQuantizeSide& side = p.sides[is_v ? 1 : 0];
  await_tensors();
  Destination to = destination_of(p, side, slots, recent_slots, batch, token);
  quantize_row<U>(
      side, is_v ? v : k, is_v ? v_codes : k_codes, is_v ? v_scales : k_scales, is_v ? v_recent : k_recent, is_v ? v_centre : k_centre,
      is_v ? v_rotation : k_rotation, batch, head, token, to, lane);
}

INT4KV_ENTRY(quantize_32, INT4KV_QUANTIZE_SIMDGROUPS, quantize<1>)
INT4KV_ENTRY(quantize_64, INT4KV_QUANTIZE_SIMDGROUPS, quantize<2>)
INT4KV_ENTRY(quantize_96, INT4KV_QUANTIZE_SIMDGROUPS, quantize<3>)
INT4KV_ENTRY(quantize_128, INT4KV_QUANTIZE_SIMDGROUPS, quantize<4>)
INT4KV_ENTRY(quantize_160, INT4KV_QUANTIZE_SIMDGROUPS, quantize<5>)
INT4KV_ENTRY(quantize_192, INT4KV_QUANTIZE_SIMDGROUPS, quantize<6>)
INT4KV_ENTRY(quantize_224, INT4KV_QUANTIZE_SIMDGROUPS, quantize<7>)
INT4KV_ENTRY(quantize_256, INT4KV_QUANTIZE_SIMDGROUPS, quantize<8>)
