// The packed format. One definition for C++, Objective-C++ and Metal: plain C, no library, no double.
//
// A cache tensor is [batch, num_key_value_heads, capacity, bytes]; token t lives in slot t % capacity.
// A row (one token of one head) is head_dim / 32 units of 32 channels. Its codes lie in planes of 4, 2 or 1 bits, one after the other,
// each through the whole row. A plane of w bits has 4 w bytes per unit:
//
//   bits of a code   3: planes 2 + 1      4: plane 4      5: planes 4 + 1      8: planes 4 + 4       (lowest bits first)
//
//   plane of 4, unit u    byte 0        byte 1             byte 15
//                        +----+----+   +----+----+        +----+----+
//                        | 16 |  0 |   | 17 |  1 |  ...   | 31 | 15 |     channel 32u + i is the low nibble of byte i,
//                        +----+----+   +----+----+        +----+----+     channel 32u + 16 + i its high nibble
//                         high  low
//
// A narrower plane folds those 16 bytes onto its 4 w: byte i goes to byte i % (4 w), its two nibbles shifted up by w * (i / (4 w)).
// So `plane[i % (4 w)] >> w * (i / (4 w))` has the bits of channels i and 16 + i at bits 0 and 4, as byte i of a plane of 4 has.
//
// Beside the codes lie the scales, fp16: one per group of group_size channels; for `asymmetric` a scale and a minimum.
//
//   codebook       value                               levels, n = 2^bits
//   uniform        scale * level[code]                 code - (n - 1) / 2               mid-rise: no code stands for zero
//   lloyd          scale * level[code]                 INT4KV_LLOYD_*, odd symmetry     Lloyd-Max; at 8 bits those of uniform
//   absmax         scale * level[code]                 code - n / 2                     code 0 is not used
//   asymmetric     scale * code + minimum              code                             the sum is rounded after the product
//
// Encoding a group x[0 .. count), everything in fp32, every operation rounded once, no fused multiply-add; x / step as x * (1 / step):
//   uniform      step = largest * (CLIP / ((n - 1) / 2)), largest = max |x|;  code = clamp(floor(x / step + n / 2), 0, n - 1);
//                odd = 2 code - (n - 1);  scale = fp16(2 * lane_sum(x * odd) / sum(odd * odd))      (least squares, given the codes)
//   lloyd        unit = largest / 127, y = x / unit;  for each f of the four INT4KV_FITS:  the level nearest to y * (1 / f), the outer one of
//                two as near, a negative y below zero;  p = lane_sum(y * level), s = sum(level * level), gain = p * p / s;
//                the codes of the largest gain, the first of equals;  scale = fp16(lane_sum(y * y) / p * unit)
//                (the least error of four clips; unbiased: the product of the decoded group with x is that of x with itself)
//   absmax       step = largest / (n / 2 - 1);  code = clamp(floor(x / step + (n / 2 + 0.5)), 1, n - 1);  scale = fp16(step)
//   asymmetric   step = (max - min) / (n - 1);  code = clamp(floor((x - min) / step + 0.5), 0, n - 1);  scale = fp16(step);
//                minimum = fp16(min + 0)                                                 (never -0 from a row of zeros)
// A group whose largest (asymmetric: max - min) is under INT4KV_TINY has scale 0, and codes as if 1 / step were 0 (lloyd: code n / 2);
// one with a NaN or an infinity, or with a scale or minimum beyond fp16, has a NaN scale (and minimum) and, if not finite, codes n / 2.
// lane_sum(y): lane i of 32 adds y[i], y[32 + i], y[64 + i], ... in order; then lanes fold 16, 8, 4, 2, 1 apart.
// These orders are part of the format: every backend gives the same bits.
#ifndef INT4KV_FORMAT_H
#define INT4KV_FORMAT_H

#define INT4KV_FORMAT_VERSION 2
#define INT4KV_UNIT 32
#define INT4KV_MAX_HEAD_DIM 256

#define INT4KV_UNIFORM 0
#define INT4KV_LLOYD 1
#define INT4KV_ABSMAX 2
#define INT4KV_ASYMMETRIC 3

// The width of the plane of a code's lowest bits, and of the plane above it (0: none).
#define INT4KV_LOW_PLANE(bits) ((bits) == 3 ? 2 : 4)
#define INT4KV_HIGH_PLANE(bits) ((bits) - INT4KV_LOW_PLANE(bits))

// uniform: the outermost code stands for this share of the largest value. On Gaussian groups of 128 each is within 3 % of the least error.
#define INT4KV_CLIP(bits) ((bits) == 3 ? 0.75f : (bits) == 4 ? 0.85f : (bits) == 5 ? 0.95f : 1.0f)

// lloyd: the upper half of the levels, small integers within 2 % of the least error that so many levels can have on a Gaussian
// (0.08, 0.24 and 1.9 %). They are rint(A * x * (1 + B * x^4)), x = code - (n - 1) / 2: arithmetic does where a table is slow.
#define INT4KV_LLOYD_LARGEST 127.0f
#define INT4KV_LLOYD_3 {15, 45, 79, 127}
#define INT4KV_LLOYD_4 {6, 18, 31, 44, 58, 75, 97, 127}
#define INT4KV_LLOYD_5 {3, 8, 13, 18, 23, 28, 34, 40, 46, 53, 61, 70, 80, 93, 108, 127}
#define INT4KV_LLOYD_A(bits) ((bits) == 3 ? 29.894f : (bits) == 4 ? 12.2425f : 5.121f)
#define INT4KV_LLOYD_B(bits) ((bits) == 3 ? 1.3994e-3f : (bits) == 4 ? 1.21e-4f : 1.0395e-5f)

// The share of the largest value that the outermost level stands for, four trials a width. On Gaussian groups of 128 the best of them
// has 14 % less error than a scale from the variance (4 bits), within 1 % of nine trials.
#define INT4KV_FITS 4
#define INT4KV_FITS_3 {0.64f, 0.72f, 0.80f, 0.88f}
#define INT4KV_FITS_4 {0.82f, 0.87f, 0.93f, 0.98f}
#define INT4KV_FITS_5 {0.87f, 0.92f, 0.97f, 1.02f}

#define INT4KV_TINY 1e-30f
#define INT4KV_FP16_NAN 0x7e00
#define INT4KV_FP32_INF_BITS 0x7f800000u

#endif
