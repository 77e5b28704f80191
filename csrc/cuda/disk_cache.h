// Compiled kernels across processes, one file each: compiling one takes seconds. In $INT4KV_CUDA_CACHE, else in ~/.cache/int4kv;
// an empty INT4KV_CUDA_CACHE turns it off. A folder that cannot be used is as good as none.
#pragma once
#include <optional>
#include <string>

namespace int4kv {

// `made_of`: all that the file depends on.
std::optional<std::string> read_cached(const std::string& made_of);

// At once or not at all, whoever else writes the same.
void write_cached(const std::string& made_of, const std::string& content);

} // namespace int4kv
