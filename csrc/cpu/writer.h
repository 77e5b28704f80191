// How rows of K or V get into a cache or into pages.
#pragma once
#include "centre.h"
#include "kernels.h"
#include "rotation.h"
#include "rows.h"

namespace int4kv {

// Two threads start with twice as many rows: 128 of head_dim 128 took 54 us on one thread and 36 on two, 64 still 34 and 26 (2 cores of an
// EPYC, AVX2, threads awake).
constexpr int64_t kRowsPerThread = 64;

// Where a row goes: a slot of a batch row or page; batch -1: nowhere.
struct Slot {
  int64_t batch, slot;
};

// Slots of pages or rings as the paged ops number them, one per token.
struct SlotNumbers {
  const int64_t* numbers;
  int64_t step;

  explicit SlotNumbers(const at::Tensor& x) : numbers(x.const_data_ptr<int64_t>()), step(x.stride(0)) {}

  int64_t at(int64_t t) const {
    return numbers[t * step];
  }
  Slot of(int64_t t, int64_t size) const {
    const int64_t number = at(t);
    return number < 0 ? Slot{-1, 0} : Slot{number / size, number % size};
  }
};

// Everything one tensor's rows need on their way.
struct Writer {
  Rows x, codes, scales;
  std::optional<Rows> recent;
  const Centre centre;
  const Rotation rotation;
  int64_t position, heads, tokens, stored_scales;
  Packing packing;
  bool packed;
  std::optional<SlotNumbers> slots, recent_slots;  // without them, token position + t goes to a ring

  // x [batch, heads, tokens, head_dim] into a cache from `position` on.
  Writer(
      const at::Tensor& x_, const Stored& stored, int64_t position_, const OptionalTensor& centre_, const OptionalTensor& rotation_,
      std::string_view codebook)
      : Writer(x_, kCacheAxes, stored, kCacheAxes, position_, centre_, rotation_, codebook) {}

  // x [tokens, heads, head_dim] into the slots of pages and rings.
  Writer(
      const at::Tensor& x_, const Stored& stored, const at::Tensor& slots_, const OptionalTensor& recent_slots_,
      const OptionalTensor& centre_, const OptionalTensor& rotation_, std::string_view codebook)
      : Writer(x_, kTokenAxes, stored, kPageAxes, 0, centre_, rotation_, codebook) {
    slots.emplace(slots_);
    if (recent_slots_) recent_slots.emplace(*recent_slots_);
  }

  void write(int64_t begin, int64_t end) const {
    for_runs(begin, end, heads, tokens, kRowsTogether, [this](int64_t b, int64_t h, int64_t t, int64_t count) { write_run(b, h, t, count); });
  }

 private:
  Writer(
      const at::Tensor& x_, Axes x_axes, const Stored& stored, Axes axes, int64_t position_, const OptionalTensor& centre_,
      const OptionalTensor& rotation_, std::string_view codebook)
      : x(x_, x_axes), codes(stored.codes, axes), scales(stored.scales, axes), centre(centre_),
        rotation(rotation_, x_.size(x_axes.channel)), position(position_), heads(x_.size(x_axes.head)), tokens(x_.size(x_axes.token)),
        stored_scales(stored.scales.size(axes.channel)),
        packing{x_.size(x_axes.channel), x_.size(x_axes.channel), 0, codebook_of(codebook)}, packed(is_packed(stored.codes)) {
    if (packed) {
      packing.group_size = packing.head_dim / (stored_scales / scales_per_group(packing.codebook));
      packing.bits = static_cast<int>(bits_of(stored.codes, packing.head_dim));
    }
    if (stored.recent) recent.emplace(*stored.recent, axes);
  }

  Slot slot_of(int64_t b, int64_t t) const {
    return slots ? slots->of(t, codes.capacity) : Slot{b, (position + t) % codes.capacity};
  }
  // Of a chunk longer than the ring, the newest tokens stay.
  Slot recent_slot_of(int64_t b, int64_t t) const {
    if (!recent) return {-1, 0};
    if (recent_slots) return recent_slots->of(t, recent->capacity);
    return {t >= tokens - recent->capacity ? b : -1, (position + t) % recent->capacity};
  }

  void write_run(int64_t b, int64_t h, int64_t t, int64_t count) const {
    alignas(64) float rows[kRowsTogether * INT4KV_MAX_HEAD_DIM];
    const int64_t head_dim = packing.head_dim;
    rotation.load(x, b, h, t, count, head_dim, centre.of(b, h), rows);
    for (int64_t i = 0; i < count; ++i) {
      const Slot to = recent_slot_of(b, t + i);
      if (to.batch >= 0) store_row(*recent, to.batch, h, to.slot, head_dim, rows + i * head_dim);
    }
    if (packed) return write_packed(b, h, t, count, rows);
    for (int64_t i = 0; i < count; ++i) {
      const Slot to = slot_of(b, t + i);
      if (to.batch >= 0) store_row(codes, to.batch, h, to.slot, head_dim, rows + i * head_dim);
    }
  }

  void write_packed(int64_t b, int64_t h, int64_t t, int64_t count, const float* rows) const {
    uint8_t nowhere[INT4KV_MAX_HEAD_DIM], *to_codes[kRowsTogether];
    uint16_t found[kRowsTogether * 2 * INT4KV_MAX_HEAD_DIM / INT4KV_UNIT];
    Slot to[kRowsTogether];
    for (int64_t i = 0; i < count; ++i) {
      to[i] = slot_of(b, t + i);
      to_codes[i] = to[i].batch < 0 ? nowhere : reinterpret_cast<uint8_t*>(codes.row(to[i].batch, h, to[i].slot));
    }
    kernels().encode(rows, count, packing, to_codes, found);
    for (int64_t i = 0; i < count; ++i) {
      if (to[i].batch < 0) continue;
      for (int64_t s = 0; s < stored_scales; ++s) scales.at<uint16_t>(to[i].batch, h, to[i].slot, s) = found[i * stored_scales + s];
    }
  }
};

// K and V, of `batch` rows each, on all threads.
void write_both(const Writer& k, const Writer& v, int64_t batch);

} // namespace int4kv
