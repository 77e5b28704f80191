#include "disk_cache.h"

#include <c10/util/hash.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace int4kv {
namespace {

namespace fs = std::filesystem;

// Empty if there is none.
fs::path folder() {
  if (const char* chosen = std::getenv("INT4KV_CUDA_CACHE")) return chosen;
  if (const char* caches = std::getenv("XDG_CACHE_HOME")) return fs::path(caches) / "int4kv";
  const char* home = std::getenv("HOME");
  return home ? fs::path(home) / ".cache" / "int4kv" : fs::path();
}

fs::path file_of(const std::string& made_of) {
  return folder() / (c10::sha1(made_of).str() + ".cubin");
}

} // namespace

std::optional<std::string> read_cached(const std::string& made_of) {
  if (folder().empty()) return std::nullopt;
  std::ifstream file(file_of(made_of), std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  return content.empty() ? std::nullopt : std::optional(content);
}

void write_cached(const std::string& made_of, const std::string& content) {
  if (folder().empty()) return;
  std::error_code ignored;
  fs::create_directories(folder(), ignored);
  const fs::path whole = file_of(made_of), partial = whole.string() + "." + std::to_string(getpid());
  const bool written = static_cast<bool>(std::ofstream(partial, std::ios::binary).write(content.data(), content.size()).flush());
  written ? fs::rename(partial, whole, ignored) : static_cast<void>(fs::remove(partial, ignored));
}

} // namespace int4kv
