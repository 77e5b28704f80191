// The executor: the threads of one threadgroup are fibers on the calling OS thread, 32 lanes to a simdgroup.
//
// A thread runs until it meets others (a barrier or a collective operation), then the schedule picks the next one.
// Threadgroups run one after the other. All state is in `machine`: a library runs one launch at a time.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernel_library.h"
#include "shim/runtime.h"

namespace executor {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kSimdgroups = MSL_THREADS / kLanes;

struct Text {
  char characters[500];
};
Text text(const char* format, ...) __attribute__((format(printf, 1, 2)));  // as printf does

struct Kernel {
  const char* name;
  void (*run)(const int* bindings);
  const int* bindings;
  int parameters;

  uint32_t mask(int kind) const;  // indices of the bindings of one kind
};

struct Lane {
  void* stack_pointer;
  const msl::Rendezvous* meeting;  // what it waits for
  uint16_t thread;
  uint16_t fiber;  // its stack; and ThreadSanitizer's idea of a thread
  uint8_t simdgroup, index;
  void* sanitizer_state;  // AddressSanitizer's
};

// Bit i stands for lane i. A live lane is ready, waits in its simdgroup, or waits for the threadgroup (neither bit).
struct Simdgroup {
  uint32_t live, ready, waiting;
  uint32_t barriers;  // simdgroup barriers passed
};

struct Machine {
  const Kernel* kernel;
  const MslLaunch* launch;
  int schedule;
  bool divergence_allowed;
  uint64_t random_state;
  uint32_t first_threadgroup, threadgroup_stride;
  const char* error;  // null while all is well

  uint32_t position[3], size[3];  // of the threadgroup that runs, in threadgroups and in threads
  uint32_t threads, alive, simdgroups, threadgroup_number;
  uint32_t barriers;          // threadgroup barriers passed
  uint32_t ready_simdgroups;  // bit s: simdgroup s has a ready lane
  Lane* current;
  void* main_stack_pointer;
  Lane lanes[MSL_THREADS];
  Simdgroup groups[kSimdgroups];
  uint64_t statistics[MSL_STATISTICS];
};
extern Machine machine;

#define UNINSTRUMENTED __attribute__((disable_sanitizer_instrumentation))
UNINSTRUMENTED inline void set_ready(uint32_t simdgroup, uint32_t lanes) {
  machine.groups[simdgroup].ready |= lanes;
  if (lanes) machine.ready_simdgroups |= 1u << simdgroup;
}
UNINSTRUMENTED inline void clear_ready(const Lane& lane) {
  uint32_t& ready = machine.groups[lane.simdgroup].ready;
  ready &= ~(1u << lane.index);
  if (!ready) machine.ready_simdgroups &= ~(1u << lane.simdgroup);
}

// executor_fiber.cpp: stacks, and the switch from one to another.
void prepare_fiber(Lane& lane);
void enter_fibers(Lane& first);  // from the launching stack; returns after leave_fibers
void switch_fiber(Lane& from, Lane& to, bool finished);
[[noreturn]] void leave_fibers();
bool has_overrun_stack(const Lane& lane);

// executor_schedule.cpp: who runs next.
void seed_schedule(int schedule, uint64_t seed, uint32_t threadgroups);
uint32_t threadgroup_in_turn(uint32_t turn, uint32_t threadgroups);
Lane& first_lane();
Lane* next_ready_lane();  // null: every live thread waits

// executor_meeting.cpp: barriers and collective operations.
[[noreturn]] void run_thread();  // what a fiber does

// executor_memory.cpp: threadgroup memory.
void lay_out_threadgroup_memory();
void begin_threadgroup_memory();
size_t threadgroup_bytes();

// executor_launch.cpp
void note_error(const Text& error);
[[noreturn]] void end_launch(const Text& error);  // on a fiber: abandons all threads

// executor_library.cpp
const Kernel* find_kernel(int kernel);  // null: no such kernel, or not started

}  // namespace executor
