// msl_launch: a grid of threadgroups, one after the other.
#include <algorithm>
#include <cstring>

#include "executor_sanitizer.h"

UNINSTRUMENTED_BEGIN

namespace executor {

Machine machine;

namespace {

Text refusal(const MslLaunch& launch) {
  const uint32_t* size = launch.threads_per_threadgroup;
  const uint64_t threads = static_cast<uint64_t>(size[0]) * size[1] * size[2];
  if (threads == 0 || threads > MSL_THREADS)
    return text("%llu threads per threadgroup; 1 to %d are possible", static_cast<unsigned long long>(threads),
                MSL_THREADS);
  for (int axis = 0; axis < 3; axis++) {
    const uint64_t last = static_cast<uint64_t>(launch.threadgroups[axis]) * size[axis];
    if (launch.threads[axis] == 0 || launch.threads[axis] > last || launch.threads[axis] + size[axis] <= last)
      return text("axis %d: %u threadgroups of %u threads do not make a grid of %u threads", axis,
                  launch.threadgroups[axis], size[axis], launch.threads[axis]);
  }
  size_t bytes = 0;
  for (int i = 0; i < MSL_BUFFERS; i++)
    if (machine.kernel->mask(msl::bound_threadgroup) >> i & 1) {
      if (launch.threadgroup_bytes[i] == 0) return text("no length for [[threadgroup(%d)]]", i);
      bytes += launch.threadgroup_bytes[i];
    }
  if (bytes > MSL_THREADGROUP_BYTES) return text("threadgroup memory %zu > %d", bytes, MSL_THREADGROUP_BYTES);
  if ((launch.schedule & ~MSL_ALLOW_DIVERGENCE) > MSL_FINE_RANDOM || launch.schedule < 0)
    return text("no schedule %d", launch.schedule);
  return {};
}

void prepare_simdgroup(uint32_t simdgroup) {
  const uint32_t lanes = std::min(machine.threads - simdgroup * kLanes, kLanes);
  Simdgroup& group = machine.groups[simdgroup];
  group = {};
  group.live = lanes == kLanes ? ~0u : (1u << lanes) - 1;
  set_ready(simdgroup, group.live);
  for (uint32_t i = 0; i < lanes; i++) {
    const uint32_t thread = simdgroup * kLanes + i;
    Lane& lane = machine.lanes[thread];
    lane = {};
    lane.thread = static_cast<uint16_t>(thread);
    lane.fiber = static_cast<uint16_t>(fiber_of_thread(thread));
    lane.simdgroup = static_cast<uint8_t>(simdgroup);
    lane.index = static_cast<uint8_t>(i);
    prepare_fiber(lane);
  }
}

void run_threadgroup(uint32_t number) {
  const MslLaunch& launch = *machine.launch;
  const uint32_t* groups = launch.threadgroups;
  const uint32_t position[3] = {number % groups[0], number / groups[0] % groups[1], number / groups[0] / groups[1]};
  for (int axis = 0; axis < 3; axis++) {
    machine.position[axis] = position[axis];
    machine.size[axis] = std::min(launch.threads_per_threadgroup[axis],
                                  launch.threads[axis] - position[axis] * launch.threads_per_threadgroup[axis]);
  }
  machine.threads = machine.alive = machine.size[0] * machine.size[1] * machine.size[2];
  machine.simdgroups = (machine.threads + kLanes - 1) / kLanes;
  machine.ready_simdgroups = machine.barriers = 0;
  machine.threadgroup_number = number;
  for (uint32_t simdgroup = 0; simdgroup < machine.simdgroups; simdgroup++) prepare_simdgroup(simdgroup);
  begin_threadgroup_memory();
  enter_fibers(first_lane());
}

void run_threadgroups() {
  const uint32_t* groups = machine.launch->threadgroups;
  const uint32_t count = groups[0] * groups[1] * groups[2];
  seed_schedule(machine.launch->schedule & ~MSL_ALLOW_DIVERGENCE, machine.launch->seed, count);
  machine.divergence_allowed = machine.launch->schedule & MSL_ALLOW_DIVERGENCE;
  lay_out_threadgroup_memory();
  tsan_begin_launch();
  for (uint32_t turn = 0; turn < count && !machine.error; turn++) run_threadgroup(threadgroup_in_turn(turn, count));
  tsan_end_launch(!machine.error);
  machine.statistics[MSL_LAUNCHES]++;
  machine.statistics[MSL_LAST_THREADGROUP_BYTES] = threadgroup_bytes();
}

// In the order of the attributes' names that the translator knows.
void built_in(int builtin, uint32_t out[3]) {
  const Lane& lane = *machine.current;
  const uint32_t* size = machine.size;
  const uint32_t* whole = machine.launch->threads_per_threadgroup;
  const uint32_t in_group[3] = {lane.thread % size[0], lane.thread / size[0] % size[1],
                                lane.thread / size[0] / size[1]};
  const auto three = [out](const uint32_t* from) { memcpy(out, from, 3 * sizeof *out); };
  switch (builtin) {
    case 0:  // thread_position_in_grid
      for (int axis = 0; axis < 3; axis++) out[axis] = machine.position[axis] * whole[axis] + in_group[axis];
      return;
    case 1: return three(machine.position);         // threadgroup_position_in_grid
    case 2: return three(in_group);                 // thread_position_in_threadgroup
    case 3: return three(machine.launch->threads);  // threads_per_grid
    case 4: return three(machine.launch->threadgroups);  // threadgroups_per_grid
    case 5: return three(size);                   // threads_per_threadgroup
    case 6: out[0] = lane.index; return;          // thread_index_in_simdgroup
    case 7: out[0] = lane.simdgroup; return;      // simdgroup_index_in_threadgroup
    case 8: out[0] = lane.thread; return;         // thread_index_in_threadgroup
    case 9: out[0] = machine.simdgroups; return;  // simdgroups_per_threadgroup
    case 10: out[0] = kLanes; return;             // threads_per_simdgroup
    case 11: return three(whole);                 // dispatch_threads_per_threadgroup
    case 12: out[0] = lane.thread / 4; return;    // quadgroup_index_in_threadgroup
    case 13: out[0] = lane.thread % 4; return;    // thread_index_in_quadgroup
    case 14: out[0] = kLanes; return;             // thread_execution_width
    case 15:  // dispatch_simdgroups_per_threadgroup
      out[0] = (whole[0] * whole[1] * whole[2] + kLanes - 1) / kLanes;
      return;
    case 16: out[0] = out[1] = out[2] = 0; return;   // grid_origin
    case 17: return three(machine.launch->threads);  // grid_size
    default: __builtin_unreachable();
  }
}

}  // namespace

void note_error(const Text& error) {
  static Text message;
  message = text("%s: %s", machine.kernel->name, error.characters);
  machine.error = message.characters;
}

void end_launch(const Text& error) {
  note_error(error);
  leave_fibers();
}

}  // namespace executor

using namespace executor;

const char* msl_launch(int kernel, const MslLaunch* launch) {
  machine.kernel = find_kernel(kernel);
  if (!machine.kernel) return "no such kernel, or msl_start was not called";
  machine.launch = launch;
  machine.error = nullptr;
  const Text problem = refusal(*launch);
  if (problem.characters[0]) note_error(problem);
  else run_threadgroups();
  return machine.error;
}

void msl_statistics(uint64_t out[MSL_STATISTICS]) {
  memcpy(out, machine.statistics, sizeof machine.statistics);
  memset(machine.statistics, 0, sizeof machine.statistics);
}

void* msl_buffer(int index) {
  return machine.launch->buffers[index];
}

void msl_builtin(int builtin, unsigned out[3]) {
  built_in(builtin, out);
}

void msl_missing_buffer(int index) {
  end_launch(text("buffer %d is not bound", index));
}

UNINSTRUMENTED_END
