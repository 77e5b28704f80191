// Stackful fibers: one stack a lane, kept from launch to launch.
#include <sys/mman.h>

#include <cstdlib>

#include "executor_sanitizer.h"
#if !defined(__x86_64__) || defined(MSL_PORTABLE_SWITCH)
#include <ucontext.h>
#define MSL_UCONTEXT 1
#endif

UNINSTRUMENTED_BEGIN

namespace executor {
namespace {

#if defined(MSL_ADDRESS_SANITIZER) || defined(MSL_THREAD_SANITIZER)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
char* stacks;
const void* main_stack;  // known to AddressSanitizer only
size_t main_stack_bytes;
bool entering;

char* stack_of(const Lane& lane) {
  return stacks + lane.fiber * kStackBytes;
}

// Committed when touched; in small pages, for one huge page would hold many stacks. One more lies below the first: what
// overruns that one.
void make_stacks() {
  constexpr size_t bytes = (kFibers + 1) * kStackBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  stacks = static_cast<char*>(memory) + kStackBytes;
}

void fiber_main() {
  if (entering) asan_arrive(nullptr, &main_stack, &main_stack_bytes);
  else asan_arrive(nullptr, nullptr, nullptr);
  entering = false;
  run_thread();
}

#ifdef MSL_UCONTEXT

ucontext_t contexts[kFibers], main_context;

void prepare_context(Lane& lane) {
  ucontext_t& context = contexts[lane.fiber];
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(lane);
  context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, fiber_main, 0);
  lane.stack_pointer = &context;
  machine.main_stack_pointer = &main_context;
}

void exchange(void** from, void* to) {
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}

#else

// Keeps the callee's registers on the stack and the stack pointer in *from, then resumes `to` in the same way.
extern "C" __attribute__((visibility("hidden"))) void msl_exchange(void** from, void* to);
asm(R"(
.text
.hidden msl_exchange
.globl msl_exchange
.type msl_exchange, @function
msl_exchange:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size msl_exchange, . - msl_exchange
)");

void prepare_context(Lane& lane) {
  constexpr int kSavedRegisters = 6;
  // Tops are staggered, else all stacks compete for the same lines of the cache.
  void** top = reinterpret_cast<void**>(stack_of(lane) + kStackBytes - 64 - 192 * (lane.fiber % 64));
  *--top = nullptr;  // where fiber_main would return to
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  lane.stack_pointer = top;
}

void exchange(void** from, void* to) {
  msl_exchange(from, to);
}

#endif
}  // namespace

void prepare_fiber(Lane& lane) {
  if (!stacks) make_stacks();
  permit_memory(stack_of(lane), kStackBytes);
  prepare_context(lane);
}

void enter_fibers(Lane& first) {
  void* state = nullptr;
  entering = true;
  machine.current = &first;
  tsan_switch_to(&first);
  asan_leave(&state, stack_of(first), kStackBytes);
  exchange(&machine.main_stack_pointer, first.stack_pointer);
  asan_arrive(state, nullptr, nullptr);
  machine.current = nullptr;
}

void switch_fiber(Lane& from, Lane& to, bool finished) {
  machine.statistics[MSL_SWITCHES]++;
  machine.current = &to;
  tsan_switch_to(&to);
  asan_leave(finished ? nullptr : &from.sanitizer_state, stack_of(to), kStackBytes);
  exchange(&from.stack_pointer, to.stack_pointer);
  asan_arrive(from.sanitizer_state, nullptr, nullptr);
}

void leave_fibers() {
  tsan_switch_to(nullptr);
  asan_leave(nullptr, main_stack, main_stack_bytes);
  exchange(&machine.current->stack_pointer, machine.main_stack_pointer);
  __builtin_unreachable();
}

// The lowest word of a stack is 0 until something was written there.
bool has_overrun_stack(const Lane& lane) {
  auto* lowest = reinterpret_cast<uint64_t*>(stack_of(lane));
  const bool overrun = *lowest != 0;
  if (overrun) *lowest = 0;
  return overrun;
}

}  // namespace executor

UNINSTRUMENTED_END
