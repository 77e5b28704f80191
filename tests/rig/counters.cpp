// The counters and what Python reads of them.
#include "counters.h"

#include <mutex>
#include <set>
#include <vector>

namespace rig {
namespace {

// Names are kept once and pointed to: a model's test dispatches the same few kernels many thousand times.
struct Dispatched {
  std::mutex mutex;
  std::set<std::string> names;
  std::vector<const std::string*> order;
};

Dispatched& dispatched() {
  static auto* one = new Dispatched;
  return *one;
}

} // namespace

Counters& counters() {
  static auto* one = new Counters;
  return *one;
}

void count_dispatch(const std::string& kernel) {
  counters().dispatches++;
  std::lock_guard<std::mutex> lock(dispatched().mutex);
  dispatched().order.push_back(&*dispatched().names.insert(kernel).first);
}

} // namespace rig

extern "C" {

const char* rig_counter_names() {
#define RIG_NAME(name) #name " "
  return RIG_COUNTERS(RIG_NAME);
#undef RIG_NAME
}

// Writes one value per name, in the order of rig_counter_names.
void rig_counter_values(uint64_t* values) {
#define RIG_VALUE(name) *values++ = rig::counters().name;
  RIG_COUNTERS(RIG_VALUE)
#undef RIG_VALUE
}

// Everything but live_bytes, which is a state and no count.
void rig_reset_counters() {
  const uint64_t live_bytes = rig::counters().live_bytes;
#define RIG_ZERO(name) rig::counters().name = 0;
  RIG_COUNTERS(RIG_ZERO)
#undef RIG_ZERO
  rig::counters().live_bytes = live_bytes;
  std::lock_guard<std::mutex> lock(rig::dispatched().mutex);
  rig::dispatched().order.clear();
}

size_t rig_dispatched_count() {
  std::lock_guard<std::mutex> lock(rig::dispatched().mutex);
  return rig::dispatched().order.size();
}

const char* rig_dispatched_name(size_t position) {
  std::lock_guard<std::mutex> lock(rig::dispatched().mutex);
  return rig::dispatched().order.at(position)->c_str();
}

} // extern "C"
