#include "metal_compiler.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <vector>

#include "validation.h"

extern "C" char** environ;

namespace rig {
namespace {

struct Toolchain {
  std::string python, script, folder, version;
};

Toolchain& toolchain() {
  static auto* one = new Toolchain;
  return *one;
}

// One process compiles, the others wait for what it makes.
class FileLock {
 public:
  explicit FileLock(const std::string& path) : file_(open(path.c_str(), O_RDWR | O_CREAT, 0644)) {
    RIG_CHECK(file_ >= 0 && flock(file_, LOCK_EX) == 0, "cannot lock %s", path.c_str());
  }
  ~FileLock() { close(file_); }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  const int file_;
};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Names the source and everything that decides what becomes of it.
std::string cache_key(const MetalSource& source) {
  std::string all = toolchain().version + '\n' + source.text;
  for (const auto& [name, value] : source.macros) all += '\n' + name + '=' + value;
  char text[17];
  std::snprintf(text, sizeof text, "%016zx", std::hash<std::string>{}(all));
  return text;
}

// The exit status; what the command printed is in the file `log`.
int run(const std::vector<std::string>& command, const std::string& log) {
  std::vector<char*> arguments;
  for (const auto& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int failure = posix_spawnp(&child, arguments[0], &files, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  RIG_CHECK(!failure, "cannot run %s", arguments[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

} // namespace

std::string compile_metal(const MetalSource& source, std::string* error) {
  RIG_CHECK(!toolchain().python.empty(), "rig_set_toolchain was not called; rig.device.load() does");
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  std::filesystem::create_directories(toolchain().folder);
  const FileLock lock_processes(toolchain().folder + "/lock");
  const std::string stem = toolchain().folder + "/" + cache_key(source), metal = stem + ".metal", library = stem + ".so";
  if (std::filesystem::exists(library)) return library;
  const std::string own = stem + "." + std::to_string(getpid());
  std::ofstream(own, std::ios::binary) << source.text;
  std::filesystem::rename(own, metal);
  std::vector<std::string> command = {toolchain().python, toolchain().script, metal, own};
  for (const auto& [name, value] : source.macros) command.insert(command.end(), {"-D", name + "=" + value});
  const std::string log = own + ".log";
  const int status = run(command, log);
  *error = read(log);
  std::filesystem::remove(log);
  if (status == 0) {
    std::filesystem::rename(own, library);
    return library;
  }
  if (error->empty()) *error = toolchain().script + " failed without a message";
  return "";
}

} // namespace rig

// python: an interpreter; script: msl/compile.py; folder: for compiled kernels; version: changes with the tools.
extern "C" void rig_set_toolchain(const char* python, const char* script, const char* folder, const char* version) {
  rig::toolchain() = {python, script, folder, version};
}
