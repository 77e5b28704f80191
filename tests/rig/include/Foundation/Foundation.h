// GNUstep's Foundation without the macros that collide with torch's names, and with what Apple's brings along.
#pragma once
#ifdef __cplusplus
#include <algorithm>
#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>
#endif
#include_next <Foundation/Foundation.h>
#include <stdint.h>
#include <time.h>

#undef _
#undef __
#undef nil
#undef Nil
#ifdef __cplusplus
#define nil nullptr
#define Nil nullptr
#else
#define nil ((void*)0)
#define Nil ((void*)0)
#endif

#ifndef API_AVAILABLE
#define API_AVAILABLE(...)
#endif

static inline uint64_t clock_gettime_nsec_np(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}
