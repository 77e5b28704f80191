// Barriers and collective operations: where threads stop, and who lets them go on.
#include "executor_sanitizer.h"

UNINSTRUMENTED_BEGIN

namespace executor {
namespace {

using msl::Rendezvous;
using msl::Site;

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && a.column == b.column && a.file == b.file && a.operation == b.operation;
}

const Lane* lanes_of(uint32_t simdgroup) {
  return machine.lanes + simdgroup * kLanes;
}

const Rendezvous& meeting_of(uint32_t simdgroup, uint32_t lane) {
  return *lanes_of(simdgroup)[lane].meeting;
}

// Those of `lanes` that wait at the place where lane `leader` waits.
uint32_t waiting_with(uint32_t simdgroup, uint32_t leader, uint32_t lanes) {
  const Site& site = meeting_of(simdgroup, leader).site;
  uint32_t together = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const uint32_t lane = __builtin_ctz(rest);
    if (same_site(meeting_of(simdgroup, lane).site, site)) together |= 1u << lane;
  }
  return together;
}

Text place(const Rendezvous& meeting) {
  return text("%s at %s:%d", meeting.site.operation, meeting.site.file, meeting.site.line);
}

Text this_threadgroup() {
  return text("threadgroup (%u, %u, %u)", machine.position[0], machine.position[1], machine.position[2]);
}

void combine(uint32_t simdgroup, uint32_t lanes, const Rendezvous& meeting) {
  machine.statistics[MSL_COLLECTIVES]++;
  msl::Participants participants;
  participants.active = lanes;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const uint32_t lane = __builtin_ctz(rest);
    participants.value[lane] = meeting_of(simdgroup, lane).value;
    participants.result[lane] = meeting_of(simdgroup, lane).result;
  }
  UnseenScope scope;
  meeting.combine(participants);
}

[[noreturn]] void fail_incomplete(const Rendezvous& meeting, uint32_t simdgroup, uint32_t lanes) {
  const uint32_t others = machine.groups[simdgroup].live & ~lanes;
  const Text why = others ? text("thread %u waits in %s", lanes_of(simdgroup)[__builtin_ctz(others)].thread,
                                 place(meeting_of(simdgroup, __builtin_ctz(others))).characters)
                          : text("it needs all of them");
  end_launch(text("%s reached by %d of 32 threads of simdgroup %u of %s; %s", place(meeting).characters,
                  __builtin_popcount(lanes), simdgroup, this_threadgroup().characters, why.characters));
}

void complete(uint32_t simdgroup, uint32_t lanes) {
  Simdgroup& group = machine.groups[simdgroup];
  const Rendezvous& meeting = meeting_of(simdgroup, __builtin_ctz(lanes));
  if (meeting.whole && lanes != ~0u) fail_incomplete(meeting, simdgroup, lanes);
  if (meeting.combine) {
    combine(simdgroup, lanes, meeting);
  } else if (!meeting.whole) {
    group.barriers++;
    machine.statistics[MSL_SIMDGROUP_BARRIERS]++;
  }
  group.waiting &= ~lanes;
  set_ready(simdgroup, lanes);
}

// Lets the group of a waiting lane go on if all its live lanes wait at the same place.
inline bool complete_if_met(uint32_t simdgroup, uint32_t lane, msl::Width width) {
  const Simdgroup& group = machine.groups[simdgroup];
  const uint32_t members = width == msl::quadgroup_wide ? 0xfu << (lane & ~3u) : ~0u;
  const uint32_t live = group.live & members;
  if ((group.waiting & live) != live || waiting_with(simdgroup, lane, live) != live) return false;
  complete(simdgroup, live);
  return true;
}

bool complete_any() {
  bool any = false;
  for (uint32_t simdgroup = 0; simdgroup < machine.simdgroups; simdgroup++) {
    for (uint32_t lane = 0; lane < kLanes; lane++)
      if (machine.groups[simdgroup].waiting >> lane & 1)
        any |= complete_if_met(simdgroup, lane, meeting_of(simdgroup, lane).width);
  }
  return any;
}

// A part of a simdgroup waits where the others will not come: they returned, or wait elsewhere.
void complete_divergent(uint32_t simdgroup) {
  const uint32_t waiting = machine.groups[simdgroup].waiting;
  uint32_t leader = __builtin_ctz(waiting);
  for (uint32_t rest = waiting; rest; rest &= rest - 1) {
    const uint32_t lane = __builtin_ctz(rest);
    if (meeting_of(simdgroup, lane).site.line < meeting_of(simdgroup, leader).site.line) leader = lane;
  }
  const Rendezvous& meeting = meeting_of(simdgroup, leader);
  uint32_t together = waiting_with(simdgroup, leader, waiting);
  if (meeting.width == msl::quadgroup_wide) together &= 0xfu << (leader & ~3u);
  machine.statistics[MSL_DIVERGENT_COLLECTIVES]++;
  if (!machine.divergence_allowed || !meeting.combine) fail_incomplete(meeting, simdgroup, together);
  complete(simdgroup, together);
}

const Lane& first_live_lane() {
  for (uint32_t simdgroup = 0;; simdgroup++)
    if (machine.groups[simdgroup].live) return lanes_of(simdgroup)[__builtin_ctz(machine.groups[simdgroup].live)];
}

[[noreturn]] void fail_barrier(const Lane& leader, uint32_t arrived, const Lane* elsewhere) {
  const Text why = elsewhere ? text("thread %u waits in %s", elsewhere->thread, place(*elsewhere->meeting).characters)
                             : text("%u have returned", machine.threads - machine.alive);
  end_launch(text("%s reached by %u of %u threads of %s; %s", place(*leader.meeting).characters, arrived,
                  machine.threads, this_threadgroup().characters, why.characters));
}

// Every live thread waits at a threadgroup barrier.
void complete_threadgroup_barrier() {
  const Site& site = first_live_lane().meeting->site;
  uint32_t arrived = 0;
  const Lane* elsewhere = nullptr;
  for (uint32_t simdgroup = 0; simdgroup < machine.simdgroups; simdgroup++) {
    for (uint32_t rest = machine.groups[simdgroup].live; rest; rest &= rest - 1) {
      const Lane& lane = lanes_of(simdgroup)[__builtin_ctz(rest)];
      if (same_site(lane.meeting->site, site)) arrived++;
      else elsewhere = &lane;
    }
  }
  if (machine.alive < machine.threads) machine.statistics[MSL_EXITED_AT_BARRIER]++;
  if (arrived < machine.threads) fail_barrier(first_live_lane(), arrived, elsewhere);
  for (uint32_t simdgroup = 0; simdgroup < machine.simdgroups; simdgroup++)
    set_ready(simdgroup, machine.groups[simdgroup].live);
  machine.barriers++;
  machine.statistics[MSL_BARRIERS]++;
}

// Nobody is ready.
void release_waiting() {
  if (complete_any()) return;
  for (uint32_t simdgroup = 0; simdgroup < machine.simdgroups; simdgroup++)
    if (machine.groups[simdgroup].waiting) return complete_divergent(simdgroup);
  complete_threadgroup_barrier();
}

// Another thread's turn, or the same one's again.
void pass_on(bool finished) {
  Lane* next;
  while (!(next = next_ready_lane())) release_waiting();
  Lane& now = *machine.current;
  if (next != &now) switch_fiber(now, *next, finished);
}

}  // namespace

void run_thread() {
  tsan_begin_thread();
  machine.kernel->run(machine.kernel->bindings);
  tsan_end_thread();
  const Lane& lane = *machine.current;
  if (has_overrun_stack(lane)) end_launch(text("thread %u has overrun its stack", lane.thread));
  clear_ready(lane);
  machine.groups[lane.simdgroup].live &= ~(1u << lane.index);
  if (--machine.alive == 0) leave_fibers();
  pass_on(true);
  __builtin_unreachable();
}

}  // namespace executor

using namespace executor;

void msl_meet(const msl::Rendezvous* meeting) {
  Lane& lane = *machine.current;
  Simdgroup& group = machine.groups[lane.simdgroup];
  const bool in_threadgroup = meeting->width == msl::threadgroup_wide;
  const uint32_t round = in_threadgroup ? machine.barriers : group.barriers;
  tsan_before_barrier(*meeting, round);
  lane.meeting = meeting;
  clear_ready(lane);
  if (!in_threadgroup) group.waiting |= 1u << lane.index;
  const bool met = !in_threadgroup && complete_if_met(lane.simdgroup, lane.index, meeting->width);
  if (!met || machine.schedule == MSL_FINE_RANDOM) pass_on(false);
  tsan_after_barrier(*meeting, round);
}

unsigned msl_lane() {
  return machine.current->index;
}

UNINSTRUMENTED_END
