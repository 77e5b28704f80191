// Metal's library as declarations for clang's C++ for OpenCL, where address spaces are real. Nothing here has a body:
// kernels are checked, never run. The checks are of address spaces; whether a call's values fit is the shim's to say.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable

// Words of OpenCL that are ordinary names in Metal.
#define local metal_local
#define global metal_global
#define generic metal_generic
#define pipe metal_pipe
#define event_t metal_event
#define atomic_int metal_atomic_int
#define atomic_uint metal_atomic_uint
#define atomic_float metal_atomic_float
#define atomic_ulong metal_atomic_ulong

#include "lint_scalars.h"
#include "lint_vectors.h"
#include "lint_functions.h"
#include "lint_simdgroup.h"
#include "lint_atomics.h"

#define is_function_constant_defined(name) true
#define device __global
#define threadgroup __local
#define constant __constant
#define thread __private

using namespace metal;
