// ThreadSanitizer's view of a launch; an empty file in other builds.
#include <sys/mman.h>

#include "executor_sanitizer.h"

#ifdef MSL_THREAD_SANITIZER
UNINSTRUMENTED_BEGIN

namespace executor {
namespace {

// A fiber keeps what it knows of earlier threadgroups. So threads take other fibers in every threadgroup: thread 0 of
// two threadgroups would else be one thread to ThreadSanitizer, and never race with itself.
constexpr uint32_t kStride = 33;
void* fibers[kFibers];
void* main_fiber;

// Addresses that stand for "this barrier, this round". A thread may pass a barrier and come to the next before another
// has resumed from the first, so rounds alternate; and so do threadgroups.
constexpr uint32_t kThreadgroups = 64;
char launch_begins, launch_ends;
char barriers[kThreadgroups][kSimdgroups + 1][2];

uint32_t pool() {
  const uint32_t* size = machine.launch->threads_per_threadgroup;
  return 2 * size[0] * size[1] * size[2];
}

char* address_of(const msl::Rendezvous& barrier, uint32_t round) {
  const uint32_t group = barrier.width == msl::threadgroup_wide ? kSimdgroups : machine.current->simdgroup;
  return &barriers[machine.threadgroup_number % kThreadgroups][group][round % 2];
}

}  // namespace

uint32_t fiber_of_thread(uint32_t thread) {
  return (thread + machine.threadgroup_number * kStride) % pool();
}

void tsan_begin_launch() {
  main_fiber = __tsan_get_current_fiber();
  // Here and not when they are needed: a fiber knows all that its creator did.
  for (uint32_t i = 0; i < pool(); i++)
    if (!fibers[i]) fibers[i] = __tsan_create_fiber(0);
  __tsan_release(&launch_begins);
}

// Abandoned threads leave fibers with calls that never return: new ones next time.
void tsan_end_launch(bool threads_finished) {
  __tsan_acquire(&launch_ends);
  if (threads_finished) return;
  for (void*& fiber : fibers) {
    if (fiber) __tsan_destroy_fiber(fiber);
    fiber = nullptr;
  }
}

void tsan_begin_thread() {
  __tsan_acquire(&launch_begins);
}

void tsan_end_thread() {
  __tsan_release(&launch_ends);
}

void tsan_switch_to(const Lane* lane) {
  __tsan_switch_to_fiber(lane ? fibers[lane->fiber] : main_fiber, __tsan_switch_to_fiber_no_sync);
}

void tsan_before_barrier(const msl::Rendezvous& barrier, uint32_t round) {
  if (barrier.orders_memory) __tsan_release(address_of(barrier, round));
}

void tsan_after_barrier(const msl::Rendezvous& barrier, uint32_t round) {
  if (barrier.orders_memory) __tsan_acquire(address_of(barrier, round));
}

void tsan_forget(void* memory, size_t bytes) {
  UnseenScope scope;  // else the new mapping counts as a write of the launching thread
  mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

}  // namespace executor

UNINSTRUMENTED_END
#endif
