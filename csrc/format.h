// The packed format. One definition for C++, Objective-C++ and Metal: plain C, no library, no double.
//
// A cache tensor is [batch, num_key_value_heads, capacity, bytes]; token t lives in slot t % capacity.
// A row (one token of one head) is head_dim / 32 units of 32 channels, 16 bytes each at 4 bits:
//
//   unit u    byte 0        byte 1             byte 15
//            +----+----+   +----+----+        +----+----+
//            | 16 |  0 |   | 17 |  1 |  ...   | 31 | 15 |     channel 32u + i is the low nibble of byte i,
//            +----+----+   +----+----+        +----+----+     channel 32u + 16 + i its high nibble
//             high  low
//
// so that 16 consecutive bytes hold 32 consecutive channels and `byte & 15`, `byte >> 4` are already in order.
// Beside the codes lie head_dim / group_size scales per row, fp16.
//
//   value[c] = scales[c / group_size] * (code[c] - 7.5)            (mid-rise: no code stands for zero)
//
// Encoding a group x[0..n), everything in fp32, every operation rounded once, no fused multiply-add:
//   largest = max |x|;  step = largest * INT4KV_CLIP_STEP;  code = clamp(floor(x / step + 8), 0, 15), x / step as x * (1 / step)
//   odd = 2 * code - 15;  scale = fp16(2 * lane_sum(x * odd) / sum(odd * odd))          (least squares, given the codes)
//   a group whose largest is under INT4KV_TINY has scale 0; one with a NaN or an infinity has a NaN scale and codes 8.
// lane_sum(y): lane i of 32 adds y[i], y[32 + i], y[64 + i], ... in order; then lanes fold 16, 8, 4, 2, 1 apart.
// These orders are part of the format: every backend gives the same bits.
#ifndef INT4KV_FORMAT_H
#define INT4KV_FORMAT_H

#define INT4KV_FORMAT_VERSION 1
#define INT4KV_UNIT 32
#define INT4KV_MAX_HEAD_DIM 256
#define INT4KV_NIBBLES 16

// The outermost code stands for 0.85 of the largest value: on Gaussian groups of 128 within 1 % of the least error (at 0.9).
#define INT4KV_CLIP_STEP (0.85f / 7.5f)
#define INT4KV_TINY 1e-30f

#define INT4KV_FP16_NAN 0x7e00
#define INT4KV_FP32_INF_BITS 0x7f800000u

#define INT4KV_LOW(byte) ((byte) & 15)
#define INT4KV_HIGH(byte) ((byte) >> 4)
#define INT4KV_PACK(low, high) ((low) | ((high) << 4))

#endif
