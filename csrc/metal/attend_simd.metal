// attend for one or two query rows at a time: o = R_v^T softmax2(q' K'^T) V', q' = log2(e) * scale * R_k q, any head_dim, any
// number of scales per row, codes of any codebook or plain rows.
//
// Grid: (splits, kv_heads * blocks, batch or sequences). A threadgroup owns H rows of one KV head and one share of their tokens. In each
// simdgroup L = 2, 4, 8 or 16 lanes (16 channels each) own a token; all token streams of the threadgroup are independent flash
// attentions, so the loop has no barrier, and each row of codes is read once for all H rows.
//
//   simdgroup, head_dim 128 (L = 8):   lanes  0..7   8..15   16..23   24..31
//                                      token    t    t + 1   t + 2    t + 3       then t + 16, ... (4 simdgroups)
//
// Registers: 16 H for q, 16 H for o. Streams are joined by shuffles, simdgroups through threadgroup memory.
#include "attend.h"

constant constexpr uint kPart = 16;  // channels of a lane: two words of codes
constant constexpr int kBatch = 4;   // tokens of a stream whose loads are in flight together

inline RowLayout row_layout() {
  return {INT4KV_MAX_HEAD_DIM, INT4KV_MAX_HEAD_DIM};
}

inline void load_channels(thread const Source& source, const device uchar* row, uint part, thread float* x) {
  for (uint i = 0; i < kPart; i++) x[i] = source.channel(row, channel_of(2 * part + i / 8, i % 8 / 2, i % 2));
}

inline void load_levels(thread const Source& source, const device uchar* row, uint part, uint parts, thread float* x) {
  Coding coding = source.coding;
  PlaneWords<2> words;
  load_words<2>(row, coding.bits, kPart * parts, 2 * part, coding.bits % 4 == 0, words);
  for (uint w = 0; w < 2; w++) {
    CodeWord code = code_word<2>(words, coding.bits, 2 * part, w);
    for (uint t = 0; t < kPairs; t++) {
      float2 pair = level_pair(code, t, coding);
      x[8 * w + 2 * t] = pair.x;
      x[8 * w + 2 * t + 1] = pair.y;
    }
  }
}

// The 16 channels of one lane of a token: levels and their scale, or values and 1; x[8 w + 2 t + e] as channel_of says.
inline float load_part(thread const Source& source, int token, uint part, uint parts, thread float* x) {
  const device uchar* row = source.row(token);
  if (source.coding.bits == INT4KV_PLAIN_BITS) {
    load_channels(source, row, part, x);
    return 1.0f;
  }
  load_levels(source, row, part, parts, x);
  uint group = part * source.groups / parts;
  if (source.coding.book != INT4KV_ASYMMETRIC) return source.scale(token, group);
  float scale = source.scale(token, 2 * group), minimum = source.scale(token, 2 * group + 1);
  for (uint i = 0; i < kPart; i++) x[i] = scale * x[i] + minimum;
  return 1.0f;
}

// A lane's place: it owns the channels of `part` (of `parts`, the rest repeats the last) in tokens of `stream`; `count` lanes a stream.
struct Lane {
  uint part, parts, count;
  int stream;
  bool live;
};

inline Lane lane_of(uint lane, uint head_dim) {
  Lane found;
  found.parts = head_dim / kPart;
  found.count = 2;
  while (found.count < found.parts) found.count *= 2;
  found.live = lane % found.count < found.parts;
  found.part = min(lane % found.count, found.parts - 1);
  found.stream = int(lane / found.count);
  return found;
}

// What a stream has summed up for its H rows.
template <int H>
struct Stream {
  float q[H][kPart], o[H][kPart], maximum[H], sum[H];
  long mask[H];
};

template <int H>
inline void start_stream(thread Stream<H>& stream, int h, const threadgroup float* rows, long mask, thread const Lane& lane) {
  stream.mask[h] = mask;
  stream.maximum[h] = kFloor;
  stream.sum[h] = 0.0f;
  for (uint i = 0; i < kPart; i++) {
    uint channel = channel_of(2 * lane.part + i / 8, i % 8 / 2, i % 2);
    stream.q[h][i] = lane.live ? rows[row_index(row_layout(), h, channel)] : 0.0f;
    stream.o[h][i] = 0.0f;
  }
}

// Which tokens one pass reads: row h sees [from[h], to[h]); stream s takes first + s, then `stride` further, below last.
template <int H>
struct Reading {
  int from[H], to[H], first, last, stride;
};

template <int H>
inline void score_batch(
    constant Int4kvAttend& p, thread const Stream<H>& stream, thread const Source& k, thread const Reading<H>& reading,
    const device bool* mask, int first, thread const Lane& lane, thread float* score, thread bool* seen) {
  for (int b = 0; b < kBatch; b++) {
    int token = first + b * reading.stride;
    float x[kPart], scale = load_part(k, min(token, reading.last - 1), lane.part, lane.parts, x);
    for (int h = 0; h < H; h++) {
      seen[b * H + h] = token >= reading.from[h] && token < reading.to[h] && mask_allows(p, mask, stream.mask[h], token);
      float dot = 0.0f;
      for (uint i = 0; i < kPart; i++) dot = fma(stream.q[h][i], x[i], dot);
      score[b * H + h] = dot * scale;
    }
  }
  for (int i = 0; i < kBatch * H; i++) {
    for (ushort apart = 1; apart < lane.count; apart *= 2) score[i] += simd_shuffle_xor(score[i], apart);
    score[i] = capped(p, score[i]);
  }
}

// score -> 2^(score - maximum) where seen, else 0; the sums are rescaled to the new maximum.
template <int H>
inline void exponentiate(thread Stream<H>& stream, thread float* score, thread const bool* seen) {
  for (int h = 0; h < H; h++) {
    float maximum = stream.maximum[h];
    for (int b = 0; b < kBatch; b++) maximum = seen[b * H + h] ? max(maximum, score[b * H + h]) : maximum;
    float rescale = fast::exp2(stream.maximum[h] - maximum);
    stream.maximum[h] = maximum;
    stream.sum[h] *= rescale;
    for (uint i = 0; i < kPart; i++) stream.o[h][i] *= rescale;
    for (int b = 0; b < kBatch; b++) {
      score[b * H + h] = seen[b * H + h] ? fast::exp2(score[b * H + h] - maximum) : 0.0f;
      stream.sum[h] += score[b * H + h];
    }
  }
}

template <int H>
inline void add_values(
    thread Stream<H>& stream, thread const Source& v, thread const Reading<H>& reading, int first, thread const Lane& lane,
    thread const float* weight, thread const bool* seen) {
  for (int b = 0; b < kBatch; b++) {
    float x[kPart], scale = load_part(v, min(first + b * reading.stride, reading.last - 1), lane.part, lane.parts, x);
    for (int h = 0; h < H; h++) {
      if (!seen[b * H + h]) continue;  // what is not seen may be NaN
      for (uint i = 0; i < kPart; i++) stream.o[h][i] = fma(weight[b * H + h] * scale, x[i], stream.o[h][i]);
    }
  }
}

template <int H>
inline void read_tokens(
    constant Int4kvAttend& p, thread Stream<H>& stream, thread const Source& k, thread const Source& v, thread const Reading<H>& reading,
    const device bool* mask, thread const Lane& lane) {
  for (int first = reading.first; first < reading.last; first += kBatch * reading.stride) {
    float score[kBatch * H];
    bool seen[kBatch * H];
    score_batch<H>(p, stream, k, reading, mask, first + lane.stream, lane, score, seen);
    exponentiate<H>(stream, score, seen);
    add_values<H>(stream, v, reading, first + lane.stream, lane, score, seen);
  }
}

// Joins the streams of a simdgroup: every lane group ends with the sums of all.
template <int H>
inline void join_streams(thread Stream<H>& stream, uint lanes) {
  for (int h = 0; h < H; h++) {
    float maximum = simd_max(stream.maximum[h]), weight = fast::exp2(stream.maximum[h] - maximum);
    stream.maximum[h] = maximum;
    stream.sum[h] *= weight;
    for (uint i = 0; i < kPart; i++) stream.o[h][i] *= weight;
    for (ushort apart = lanes; apart < INT4KV_SIMD; apart *= 2) {
      stream.sum[h] += simd_shuffle_xor(stream.sum[h], apart);
      for (uint i = 0; i < kPart; i++) stream.o[h][i] += simd_shuffle_xor(stream.o[h][i], apart);
    }
  }
}

// Joins the simdgroups in turns: the rows that held the queries end with the sums of all.
template <int H>
inline void join_streams_in_turns(
    thread Stream<H>& stream, threadgroup float* rows, thread const Statistics& found, uint simdgroup, thread const Lane& lane,
    uint thread_index) {
  for (int h = 0; h < H && thread_index == 0; h++) {
    found.maxima[simdgroup * H + h] = stream.maximum[h];
    found.sums[simdgroup * H + h] = stream.sum[h];
  }
  for (uint turn = 0; turn < INT4KV_SIMDGROUPS; turn++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (turn != simdgroup || thread_index >= lane.parts) continue;
    for (int h = 0; h < H; h++) {
      float weight = fast::exp2(stream.maximum[h] - found.maximum(h));
      for (uint i = 0; i < kPart; i++) {
        threadgroup float* o = rows + row_index(row_layout(), h, channel_of(2 * lane.part + i / 8, i % 8 / 2, i % 2));
        *o = turn == 0 ? weight * stream.o[h][i] : *o + weight * stream.o[h][i];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

template <int H>
[[kernel]] void attend_simd(
    const device void* q [[buffer(0)]], const device void* k_codes [[buffer(1)]], const device half* k_scales [[buffer(2)]],
    const device void* v_codes [[buffer(3)]], const device half* v_scales [[buffer(4)]], const device void* k_sink [[buffer(5)]],
    const device void* v_sink [[buffer(6)]], const device void* k_recent [[buffer(7)]], const device void* v_recent [[buffer(8)]],
    const device float* k_rotation [[buffer(9)]], const device float* v_rotation [[buffer(10)]],
    const device float* v_centre [[buffer(11)]], const device bool* mask [[buffer(12)]], device void* out [[buffer(13)]],
    device float* partial [[buffer(14)]], device float2* statistics [[buffer(15)]], const device int* block_table [[buffer(16)]],
    const device int* lengths [[buffer(17)]], const device int* query_starts [[buffer(18)]], const device int* rings [[buffer(19)]],
    const device int* recent_starts [[buffer(20)]], constant Int4kvAttend& p [[buffer(21)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  INT4KV_THREADGROUP(float, rows, H * INT4KV_MAX_HEAD_DIM);
  INT4KV_THREADGROUP(float, maxima, INT4KV_SIMDGROUPS * H);
  INT4KV_THREADGROUP(float, sums, INT4KV_SIMDGROUPS * H);
  uint split = group.x, kv_head = group.y / p.blocks, block = group.y % p.blocks;
  await_tensors();
  Sequence sequence = sequence_of(p, {block_table, lengths, query_starts, rings, recent_starts}, group.z);
  if (paged && block * H >= sequence.rows(p)) return;
  const uint units = p.head_dim / INT4KV_UNIT;
  AskedQueries<1> asked = ask_for_queries<1>(p, q, k_rotation, sequence, kv_head, block * H, units, simdgroup, thread_index);
  rotate_queries<1>(p, asked, k_rotation, kv_head, H, units, simdgroup, thread_index, row_layout(), rows);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Lane lane = lane_of(thread_index, p.head_dim);
  Stream<H> stream;
  Span spans[H];
  for (int h = 0; h < H; h++) {
    QueryRow row = query_row(p, sequence, kv_head, block * H + h);
    spans[h] = span_of(p, sequence, row.query);
    start_stream<H>(stream, h, rows, row_offset(p.mask, sequence.batch, row.head, row.query), lane);
  }

  Share share = share_of(p, sequence, spans[0], spans[H - 1], split, int(INT4KV_SIMD), 0);
  int streams = int(INT4KV_SIMD / lane.count), offset = int(simdgroup) * streams;
  Reading<H> reading;
  reading.stride = int(INT4KV_SIMDGROUPS) * streams;
  reading.first = max(spans[0].coded, share.from) + offset;
  reading.last = min(spans[H - 1].exact, share.to);
  for (int h = 0; h < H; h++) reading.from[h] = spans[h].coded, reading.to[h] = min(spans[h].exact, share.to);
  Source k = code_source(p, p.k, coding_of(k_bits, codebook, thread_index), k_codes, k_scales, sequence, kv_head);
  Source v = code_source(p, p.v, coding_of(v_bits, codebook, thread_index), v_codes, v_scales, sequence, kv_head);
  read_tokens<H>(p, stream, k, v, reading, mask, lane);

  for (int newest = p.sinks > 0 ? 0 : 1; newest < 2; newest++) {
    uint held = newest ? sequence.ring : sequence.batch;
    int origin = newest ? sequence.recent_from : 0;
    reading.first = max(newest ? max(spans[0].exact, sequence.recent_from) : spans[0].lo, share.from) + offset;
    reading.last = min(newest ? spans[H - 1].hi : spans[H - 1].coded, share.to);
    for (int h = 0; h < H; h++) {
      reading.from[h] = newest ? spans[h].exact : spans[h].lo;
      reading.to[h] = min(newest ? spans[h].hi : spans[h].coded, share.to);
    }
    k = plain_source(newest ? p.k_recent : p.k_sink, newest ? k_recent : k_sink, held, kv_head, origin);
    v = plain_source(newest ? p.v_recent : p.v_sink, newest ? v_recent : v_sink, held, kv_head, origin);
    read_tokens<H>(p, stream, k, v, reading, mask, lane);
  }

  Statistics found = {maxima, sums, H};
  join_streams<H>(stream, lane.count);
  join_streams_in_turns<H>(stream, rows, found, simdgroup, lane, thread_index);
  Output output = {v_rotation, v_centre, out, partial, statistics};
  write_rows(p, rows, found, sequence, kv_head, block, split, units, simdgroup, thread_index, row_layout(), output);
}

INT4KV_ENTRY(attend_simd_1, INT4KV_SIMDGROUPS, attend_simd<1>)
INT4KV_ENTRY(attend_simd_2, INT4KV_SIMDGROUPS, attend_simd<2>)
