// What AddressSanitizer and ThreadSanitizer have to be told about fibers. Nothing in a plain build.
//
// ThreadSanitizer sees each GPU thread as a thread of its own. Only barriers order memory: they release and acquire. A
// collective operation orders nothing, nor does the order in which the executor happens to run threads. Threadgroups of
// one launch are not ordered either, so two that write one place race.
#pragma once
#include "executor.h"

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define MSL_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#define MSL_THREAD_SANITIZER 1
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
// Every source file of the executor is between these two: it reads what waiting threads have left on their stacks.
#define UNINSTRUMENTED_BEGIN \
  _Pragma("clang attribute push(__attribute__((disable_sanitizer_instrumentation)), apply_to = function)")
#define UNINSTRUMENTED_END _Pragma("clang attribute pop")
#else
#define UNINSTRUMENTED_BEGIN
#define UNINSTRUMENTED_END
#endif

namespace executor {

constexpr bool kRedZones =
#ifdef MSL_ADDRESS_SANITIZER
    true;
#else
    false;
#endif

#ifdef MSL_ADDRESS_SANITIZER
inline void forbid_memory(void* memory, size_t bytes) {
  __asan_poison_memory_region(memory, bytes);
}
inline void permit_memory(void* memory, size_t bytes) {
  __asan_unpoison_memory_region(memory, bytes);
}
// Before a switch to the given stack, on the old one (state null: never resumed); and after it, on the new one.
inline void asan_leave(void** state, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(state, stack, bytes);
}
inline void asan_arrive(void* state, const void** old_stack, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(state, old_stack, old_bytes);
}
#else
inline void forbid_memory(void*, size_t) {}
inline void permit_memory(void*, size_t) {}
inline void asan_leave(void**, const void*, size_t) {}
inline void asan_arrive(void*, const void**, size_t*) {}
#endif

// What happens in this scope is done on behalf of several threads: a combine function reads their values and writes
// their results, threadgroup memory gets its first contents.
struct UnseenScope {
#ifdef MSL_THREAD_SANITIZER
  UnseenScope() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~UnseenScope() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  UnseenScope() {}
#endif
};

#ifdef MSL_THREAD_SANITIZER
constexpr uint32_t kFibers = 2 * MSL_THREADS;
uint32_t fiber_of_thread(uint32_t thread);
void tsan_begin_launch();
void tsan_end_launch(bool threads_finished);
void tsan_begin_thread();
void tsan_end_thread();
void tsan_switch_to(const Lane* lane);  // null: the launching thread
void tsan_before_barrier(const msl::Rendezvous& barrier, uint32_t round);
void tsan_after_barrier(const msl::Rendezvous& barrier, uint32_t round);
void tsan_forget(void* memory, size_t bytes);  // whole pages: their contents and who accessed them
#else
constexpr uint32_t kFibers = MSL_THREADS;
inline uint32_t fiber_of_thread(uint32_t thread) {
  return thread;
}
inline void tsan_begin_launch() {}
inline void tsan_end_launch(bool) {}
inline void tsan_begin_thread() {}
inline void tsan_end_thread() {}
inline void tsan_switch_to(const Lane*) {}
inline void tsan_before_barrier(const msl::Rendezvous&, uint32_t) {}
inline void tsan_after_barrier(const msl::Rendezvous&, uint32_t) {}
inline void tsan_forget(void*, size_t) {}
#endif

}  // namespace executor
