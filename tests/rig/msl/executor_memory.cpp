// Threadgroup memory: the [[threadgroup(i)]] buffers first, then variables in the order in which threads reach them.
#include <algorithm>
#include <cstring>

#include "executor_sanitizer.h"

UNINSTRUMENTED_BEGIN

namespace executor {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kRedZone = kRedZones ? 64 : 0;
constexpr int kVariables = 64;

struct Variable {
  const void* key;
  size_t offset, bytes;
};

// Room for the red zones of a sanitizer, and of its own so that an overrun meets nothing of the executor.
alignas(4096) unsigned char arena[4 * MSL_THREADGROUP_BYTES];
Variable variables[kVariables];
int variable_count;
size_t buffer_offset[MSL_BUFFERS], buffer_bytes[MSL_BUFFERS];
size_t arena_end, allocated;
uint32_t buffers;

size_t allocate(size_t bytes, size_t alignment) {
  alignment = std::max(alignment, kRedZones ? kAlignment : size_t{1});
  const size_t offset = (arena_end + alignment - 1) / alignment * alignment;
  allocated = (allocated + alignment - 1) / alignment * alignment + bytes;
  arena_end = offset + bytes + kRedZone;
  return offset;
}

// All bits set: NaN as a float, so that what was not written shows.
void make_fresh(size_t offset, size_t bytes) {
  UnseenScope scope;
  permit_memory(arena + offset, bytes);
  memset(arena + offset, 0xff, bytes);
}

void* add_variable(const void* key, size_t bytes, size_t alignment) {
  if (variable_count == kVariables) end_launch(text("more than %d threadgroup variables", kVariables));
  const size_t offset = allocate(bytes, alignment);
  if (allocated > MSL_THREADGROUP_BYTES)
    end_launch(text("threadgroup memory %zu > %d", allocated, MSL_THREADGROUP_BYTES));
  variables[variable_count++] = {key, offset, bytes};
  make_fresh(offset, bytes);
  return arena + offset;
}

}  // namespace

void lay_out_threadgroup_memory() {
  buffers = machine.kernel->mask(msl::bound_threadgroup);
  arena_end = allocated = 0;
  variable_count = 0;
  for (int i = 0; i < MSL_BUFFERS; i++) {
    if (!(buffers >> i & 1)) continue;
    buffer_bytes[i] = machine.launch->threadgroup_bytes[i];
    buffer_offset[i] = allocate(buffer_bytes[i], kAlignment);
  }
}

void begin_threadgroup_memory() {
  forbid_memory(arena, sizeof arena);
  if (arena_end == 0) return;
  tsan_forget(arena, arena_end);
  for (int i = 0; i < MSL_BUFFERS; i++)
    if (buffers >> i & 1) make_fresh(buffer_offset[i], buffer_bytes[i]);
  for (int i = 0; i < variable_count; i++) make_fresh(variables[i].offset, variables[i].bytes);
}

size_t threadgroup_bytes() {
  return allocated;
}

}  // namespace executor

void* msl_threadgroup_buffer(int index) {
  return executor::arena + executor::buffer_offset[index];
}

void* msl_threadgroup_variable(const void* key, unsigned long bytes, unsigned long alignment, const char*) {
  for (int i = 0; i < executor::variable_count; i++)
    if (executor::variables[i].key == key) return executor::arena + executor::variables[i].offset;
  return executor::add_variable(key, bytes, alignment);
}

UNINSTRUMENTED_END
