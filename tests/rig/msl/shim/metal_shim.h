// The Metal standard library for kernels that were translated to C++. Address spaces vanish here: the lint checks them.
#pragma once
#include "atomic.h"
#include "entry.h"
#include "integer.h"
#include "math.h"
#include "matrix.h"
#include "simdgroup.h"
#include "simdgroup_matrix.h"

using namespace metal;

#define device
#define thread
#define threadgroup
#define constant const
#define kernel
