#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace int4kv {

namespace portable { extern const Kernels kKernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }
#elif defined(__aarch64__)
namespace neon { extern const Kernels kKernels; }
#endif

namespace {

const Kernels* const* find_available() {
  static const Kernels* found[4] = {};
  int count = 0;
#if defined(__x86_64__)
  const auto has = [](auto... features) { return (features && ...); };
  if (has(__builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"),
          __builtin_cpu_supports("avx512vnni"), __builtin_cpu_supports("avx512vbmi"))) {
    found[count++] = &avx512::kKernels;
  }
  if (has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"))) found[count++] = &avx2::kKernels;
#elif defined(__aarch64__)
  found[count++] = &neon::kKernels;
#endif
  found[count] = &portable::kKernels;
  return found;
}

const Kernels* named(const std::string& name) {
  std::string accepted;
  for (auto set = available_kernels(); *set; ++set) {
    if (name == (*set)->name) return *set;
    accepted += std::string(accepted.empty() ? "" : ", ") + (*set)->name;
  }
  throw std::invalid_argument("int4kv: the CPU kernels are '" + name + "'; accepted on this processor are " + accepted);
}

std::atomic<const Kernels*> in_use{nullptr};

const Kernels* choose() {
  const char* wanted = std::getenv("INT4KV_CPU");
  return wanted && *wanted ? named(wanted) : available_kernels()[0];
}

} // namespace

const Kernels* const* available_kernels() {
  static const Kernels* const* found = find_available();
  return found;
}

const Kernels& kernels() {
  const Kernels* set = in_use.load(std::memory_order_relaxed);
  if (!set) in_use.store(set = choose(), std::memory_order_relaxed);
  return *set;
}

void use_kernels(const char* name) {
  in_use.store(named(name), std::memory_order_relaxed);
}

} // namespace int4kv
