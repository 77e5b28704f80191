// Tiles of 8 * B tokens on the matrix units of NVIDIA's GPUs: what csrc/metal/tiles.h declares, as those want it (PTX ISA, mma).
//
//   S (16 x 8 tokens) += Q (16 x 32 channels, int8) * K^T (32 channels x 8 tokens, uint8)      head_dim / 32 times a block
//   O^T (16 channels x 8 columns) += V^T (16 channels x 16 tokens, fp16) * P^T (16 tokens x 8 columns, fp16)
//
// Integers for K: levels are bytes plus an offset, four in a register as they come out of a word, and the products are exact. A query
// row is 16 bits to its largest channel, in two rows of Q: 8 columns of high bytes, 8 of low ones.
// Lane 4 g + j, of a block:  S    column g, tokens 2 j and 2 j + 1
//                            K    token g, a quarter of its channels (j)
//                            V    its tokens of S, two bytes of each unit (g)
//                            O^T  columns 2 j and 2 j + 1, the same channels
// So S becomes P^T where it lies, and nothing but the maxima ever goes between lanes.
#ifndef INT4KV_CUDA_TILES_H
#define INT4KV_CUDA_TILES_H

#include "exact_rows.h"
#include "keys.h"

#endif
