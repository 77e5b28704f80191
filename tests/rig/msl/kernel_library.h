/* What a compiled .metal file offers: a shared library of plain C functions, kernels and executor in one.
 *
 *   dlopen -> msl_set_constant* -> msl_start -> msl_launch ...
 *
 * One copy of the library is one specialisation: other function constants need a private copy of the file. Messages are
 * NULL when all is well; otherwise they stay valid until the next call. A library runs one launch at a time. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MSL_BUFFERS = 31, MSL_THREADGROUP_BYTES = 32768, MSL_THREADS = 1024 };

/* The order in which threads run between two synchronisations. A right kernel gives the same results under each. */
enum {
  MSL_FORWARD = 0,        /* threads in order, each up to where it has to wait */
  MSL_BACKWARD = 1,       /* the reverse, threadgroups too */
  MSL_COARSE_RANDOM = 2,  /* a random simdgroup until all of it waits, its lanes in random order */
  MSL_FINE_RANDOM = 3,    /* a random thread after every synchronisation */
  /* Flag: SIMD functions may be reached by a part of a simdgroup's live threads, as Metal allows. An error without it. */
  MSL_ALLOW_DIVERGENCE = 0x100
};

enum {
  MSL_SWITCHES, MSL_COLLECTIVES, MSL_BARRIERS, MSL_DIVERGENT_COLLECTIVES, MSL_EXITED_AT_BARRIER,
  MSL_LAST_THREADGROUP_BYTES, MSL_SIMDGROUP_BARRIERS, MSL_LAUNCHES, MSL_STATISTICS
};

typedef struct {
  void* const* buffers;            /* [MSL_BUFFERS] */
  const size_t* threadgroup_bytes; /* [MSL_BUFFERS] */
  uint32_t threads_per_threadgroup[3], threadgroups[3];
  uint32_t threads[3];             /* the whole grid; the last threadgroup of an axis may be partial */
  int schedule;
  uint64_t seed;
} MslLaunch;

int msl_kernel_count(void);
const char* msl_kernel_name(int kernel);
uint32_t msl_buffer_mask(int kernel);      /* bit i: there is a parameter [[buffer(i)]]; complete after msl_start */
uint32_t msl_threadgroup_mask(int kernel); /* bit i: [[threadgroup(i)]] */

int msl_constant_count(void);
const char* msl_constant_name(int constant);
int msl_constant_index(int constant);
size_t msl_constant_size(int constant);
const char* msl_set_constant(int constant, const void* value);
const char* msl_start(void);

const char* msl_launch(int kernel, const MslLaunch* launch);
void msl_statistics(uint64_t out[MSL_STATISTICS]); /* reading resets them */

#ifdef __cplusplus
}
#endif
