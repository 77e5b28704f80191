// One row's way into the cache and back: numbers -> minus the centre -> rotated -> codes and scales, packed. Every set of instructions
// gives the same bits, those of ../../format.h: no sum changes its order with kLanes, no rounded product is fused into a sum.
#include "lanes.h"
#include "numbers.h"
#include "rotate.h"
#include "planes.h"
#include "evenly.h"
#include "lloyd.h"
#include "encode.h"
#include "decode.h"
