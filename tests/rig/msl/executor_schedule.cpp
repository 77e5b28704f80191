// The order of threads and threadgroups.
#include <numeric>

#include "executor_sanitizer.h"

UNINSTRUMENTED_BEGIN

namespace executor {
namespace {

bool is_random() {
  return machine.schedule >= MSL_COARSE_RANDOM;
}

uint64_t random_number() {
  uint64_t& x = machine.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

uint32_t rotated_right(uint32_t mask, uint32_t bits) {
  return mask >> bits % 32 | mask << -bits % 32;
}

uint32_t random_bit(uint32_t mask) {
  for (uint32_t skipped = random_number() % __builtin_popcount(mask); skipped > 0; skipped--) mask &= mask - 1;
  return __builtin_ctz(mask);
}

// A set bit of a mask that is not 0: the first at or after `start` (at or before it, backward), in a circle; or any.
uint32_t pick(uint32_t mask, uint32_t start) {
  if (is_random()) return random_bit(mask);
  if (machine.schedule == MSL_BACKWARD) return (start - __builtin_clz(rotated_right(mask, start + 1))) % kLanes;
  return (start + __builtin_ctz(rotated_right(mask, start))) % kLanes;
}

uint32_t after(uint32_t index) {
  return (machine.schedule == MSL_BACKWARD ? index - 1 : index + 1) % kLanes;
}

uint32_t first() {
  return machine.schedule == MSL_BACKWARD ? kLanes - 1 : 0;
}

}  // namespace

// Random orders go through the threadgroups with a stride that has no factor in common with their number.
void seed_schedule(int schedule, uint64_t seed, uint32_t threadgroups) {
  machine.schedule = schedule;
  machine.random_state = seed * 2654435761u + 88172645463325252u;
  if (!is_random()) return;
  machine.first_threadgroup = random_number() % threadgroups;
  do machine.threadgroup_stride = random_number() % threadgroups + 1;
  while (std::gcd(machine.threadgroup_stride, threadgroups) != 1);
}

uint32_t threadgroup_in_turn(uint32_t turn, uint32_t threadgroups) {
  if (machine.schedule == MSL_BACKWARD) return threadgroups - 1 - turn;
  if (!is_random()) return turn;
  return (machine.first_threadgroup + static_cast<uint64_t>(turn) * machine.threadgroup_stride) % threadgroups;
}

Lane& first_lane() {
  const uint32_t group = pick(machine.ready_simdgroups, first());
  return machine.lanes[group * kLanes + pick(machine.groups[group].ready, first())];
}

// Stays in the simdgroup while one of its lanes can go on; FINE_RANDOM does not.
Lane* next_ready_lane() {
  if (!machine.ready_simdgroups) return nullptr;
  const Lane& now = *machine.current;
  const bool stays = machine.groups[now.simdgroup].ready != 0 && machine.schedule != MSL_FINE_RANDOM;
  const uint32_t group = stays ? now.simdgroup : pick(machine.ready_simdgroups, after(now.simdgroup));
  const uint32_t start = stays ? after(now.index) : first();
  return &machine.lanes[group * kLanes + pick(machine.groups[group].ready, start)];
}

}  // namespace executor

UNINSTRUMENTED_END
