// What a kernel library contains: its kernels and function constants, and when their values are known.
#include <elf.h>
#include <link.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

#include "executor_sanitizer.h"

UNINSTRUMENTED_BEGIN

// The kernels' static initialisers read function constants and register kernels. The loader runs them when the library
// is opened, with no values yet: that finds the names. msl_start runs them again, with the values.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];
using Initialiser = void (*)();
static void no_operation() {}
// Sorted behind the sanitizers' own initialisers and before those of the kernels.
__attribute__((section(".init_array.65000"), used)) static const Initialiser first_initialiser = &no_operation;

namespace executor {

uint32_t Kernel::mask(int kind) const {
  uint32_t mask = 0;
  for (int i = 0; i < parameters; i++)
    if (bindings[2 * i] == kind) mask |= 1u << bindings[2 * i + 1];
  return mask;
}

namespace {

struct Constant {
  const char* name;
  long index;
  size_t bytes;
  unsigned char value[16];
  bool is_set, is_optional;  // optional: the source asks whether it is defined
};

// Made at first use and never destroyed: they have to be ready before any initialiser and to survive a second run.
std::vector<Kernel>& kernels() {
  static auto* list = new std::vector<Kernel>;
  return *list;
}
std::vector<Constant>& constants() {
  static auto* list = new std::vector<Constant>;
  return *list;
}
bool started;

Constant& constant_named(const char* name) {
  for (Constant& constant : constants())
    if (strcmp(constant.name, name) == 0) return constant;
  constants().push_back({name, -1, 0, {}, false, false});
  return constants().back();
}

const char* dynamic_entry(ElfW(Sxword) tag, size_t* bytes = nullptr) {
  for (const ElfW(Dyn)* entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++) {
    if (entry->d_tag == tag && bytes) *bytes = entry->d_un.d_val;
    if (entry->d_tag == tag) return __ehdr_start + entry->d_un.d_ptr;
  }
  return nullptr;
}

void run_initialisers_again() {
  size_t bytes = 0;
  dynamic_entry(DT_INIT_ARRAYSZ, &bytes);
  const auto* end = reinterpret_cast<const Initialiser*>(dynamic_entry(DT_INIT_ARRAY) + bytes);
  for (const Initialiser* initialiser = &first_initialiser + 1; initialiser < end; initialiser++) (*initialiser)();
}

const char* error(const Text& message) {
  static Text answer;
  answer = message;
  return answer.characters;
}

}  // namespace

const Kernel* find_kernel(int kernel) {
  return started && kernel >= 0 && kernel < msl_kernel_count() ? &kernels()[kernel] : nullptr;
}

Text text(const char* format, ...) {
  Text result;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(result.characters, sizeof result.characters, format, arguments);
  va_end(arguments);
  return result;
}

}  // namespace executor

using namespace executor;

void msl_register(const char* name, void (*run)(const int*), const int* bindings, int parameters) {
  kernels().push_back({name, run, bindings, parameters});
}

// Before values are known a constant is 1: it may be a divisor of another.
void msl_function_constant(const char* name, long index, void* value, unsigned long bytes) {
  Constant& constant = constant_named(name);
  constant.index = index;
  constant.bytes = bytes;
  if (!constant.is_set) constant.value[0] = 1;
  memcpy(value, constant.value, bytes);
}

bool msl_function_constant_defined(const char* name) {
  Constant& constant = constant_named(name);
  constant.is_optional = true;
  return constant.is_set;
}

int msl_kernel_count() {
  return static_cast<int>(kernels().size());
}
const char* msl_kernel_name(int kernel) {
  return kernels()[kernel].name;
}
uint32_t msl_buffer_mask(int kernel) {
  return kernels()[kernel].mask(msl::bound_buffer);
}
uint32_t msl_threadgroup_mask(int kernel) {
  return kernels()[kernel].mask(msl::bound_threadgroup);
}
int msl_constant_count() {
  return static_cast<int>(constants().size());
}
const char* msl_constant_name(int constant) {
  return constants()[constant].name;
}
int msl_constant_index(int constant) {
  return static_cast<int>(constants()[constant].index);
}
size_t msl_constant_size(int constant) {
  return constants()[constant].bytes;
}

const char* msl_set_constant(int constant, const void* value) {
  if (started) return "function constants are fixed by msl_start";
  if (constant < 0 || constant >= msl_constant_count()) return error(text("no function constant number %d", constant));
  Constant& chosen = constants()[constant];
  if (chosen.bytes > sizeof chosen.value)
    return error(text("function constant %s has %zu bytes", chosen.name, chosen.bytes));
  memcpy(chosen.value, value, chosen.bytes);
  chosen.is_set = true;
  return nullptr;
}

const char* msl_start() {
  if (started) return "msl_start was called before";
  for (const Constant& constant : constants())
    if (!constant.is_set && !constant.is_optional)
      return error(text("function constant %s (index %ld) has no value", constant.name, constant.index));
  started = true;
  kernels().clear();
  run_initialisers_again();
  return nullptr;
}

UNINSTRUMENTED_END
