// The rig's modes, read once from the environment; README.md says what each is for.
#pragma once
#include <cstdint>
#include <string>

#include "validation.h"

namespace rig {

inline uint64_t number_from_environment(const char* name, uint64_t otherwise, uint64_t least, uint64_t most) {
  const char* text = std::getenv(name);
  if (!text) return otherwise;
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  RIG_CHECK(
      *text && !*end && value >= least && value <= most, "%s is '%s'; accepted are %llu to %llu", name, text,
      static_cast<unsigned long long>(least), static_cast<unsigned long long>(most));
  return value;
}

inline std::string text_from_environment(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}

struct Modes {
  bool poison = number_from_environment("RIG_POISON", 0, 0, 1);
  bool guard = number_from_environment("RIG_GUARD", 0, 0, 1);
  bool log_fallbacks = number_from_environment("RIG_LOG", 0, 0, 1);
  int schedule = static_cast<int>(number_from_environment("RIG_SCHEDULE", 0, 0, 3));
  uint64_t seed = number_from_environment("RIG_SEED", 1, 0, UINT64_MAX);
  unsigned cores = static_cast<unsigned>(number_from_environment("RIG_CORES", 8, 1, 1000));
  unsigned max_threads = static_cast<unsigned>(number_from_environment("RIG_MAX_THREADS", 1024, 32, 1024));
  std::string record_folder = text_from_environment("RIG_RECORD");
};

inline const Modes& modes() {
  static const Modes from_environment;
  return from_environment;
}

} // namespace rig
