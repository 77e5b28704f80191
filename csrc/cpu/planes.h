// Codes, a byte each, to and from the planes of a packed row: format.h draws them.
#pragma once
#include <cstdint>

namespace int4kv {

void pack(const uint8_t* codes, int64_t head_dim, int64_t bits, uint8_t* row);
void unpack(const uint8_t* row, int64_t head_dim, int64_t bits, uint8_t* codes);

} // namespace int4kv
