// What a compiled kernel asks of the executor. Freestanding, and shared by both sides.
#pragma once

namespace msl {

// The place of a call in the Metal source. Made by a default argument (MSL_SITE), so that it is the caller's, and one
// call keeps one place when the compiler unrolls or duplicates it.
struct Site {
  const char* operation;
  const char* file;
  int line, column;
};
#define MSL_SITE(operation) ::msl::Site site = {operation, __builtin_FILE(), __builtin_LINE(), __builtin_COLUMN()}

// What the threads that meet in a collective operation brought: lane i, if bit i of active is set.
struct Participants {
  unsigned active;
  const void* value[32];
  void* result[32];
};

enum Width : unsigned { threadgroup_wide = 0, quadgroup_wide = 4, simdgroup_wide = 32 };

// A point that a thread does not pass before its group has come to it as well.
struct Rendezvous {
  Site site;
  Width width;
  bool orders_memory;                 // a barrier with any mem_flags
  bool whole;                         // every thread of the group has to come, exited ones included
  void (*combine)(Participants&);     // null: a barrier
  const void* value;
  void* result;
};

// A parameter's binding is two ints: its kind, and the index of its attribute.
enum Binding { bound_buffer, bound_threadgroup, bound_builtin, bound_nothing };

}  // namespace msl

#define MSL_RUNTIME extern "C" __attribute__((visibility("hidden")))

MSL_RUNTIME void msl_meet(const msl::Rendezvous* rendezvous);
MSL_RUNTIME unsigned msl_lane();
MSL_RUNTIME void msl_builtin(int builtin, unsigned out[3]);
MSL_RUNTIME void* msl_buffer(int index);                          // null when not bound
MSL_RUNTIME void* msl_threadgroup_buffer(int index);              // [[threadgroup(index)]]
MSL_RUNTIME void* msl_threadgroup_variable(const void* key, unsigned long bytes, unsigned long alignment, const char* name);
MSL_RUNTIME void msl_function_constant(const char* name, long index, void* value, unsigned long bytes);
MSL_RUNTIME bool msl_function_constant_defined(const char* name);
MSL_RUNTIME void msl_register(const char* name, void (*run)(const int*), const int* bindings, int parameters);
MSL_RUNTIME void msl_missing_buffer(int index) __attribute__((noreturn));
