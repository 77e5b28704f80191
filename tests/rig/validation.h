// What Metal's validation layer rejects, or what a Mac silently gets wrong, ends the process with a sentence.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace rig {

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("[rig] ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

} // namespace rig

#define RIG_CHECK(condition, ...) \
  do {                            \
    if (!(condition)) {           \
      ::rig::fail(__VA_ARGS__);   \
    }                             \
  } while (0)
