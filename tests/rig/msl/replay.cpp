// Runs recorded dispatches again, on another build of the kernels:
//
//   replay KERNELS.so FILE.launch... [--schedule N] [--seed N] [--repeat N]
//
// Each dispatch starts from the buffers as recorded and is compared, bit for bit, with what they held after it. One
// line a launch; exit status 1 for any difference or message. A sanitizer that the program and the kernels are built
// with reports as usual. File format (little endian):
//
//   "MSLR" u32 version=1  u32 length, name  u32 threads_per_threadgroup[3], threadgroups[3], threads[3]  u32 bindings
//   per binding: u32 kind (0 buffer, 1 threadgroup length, 2 function constant)  u32 index  u64 bytes
//                and for a buffer: its bytes before, u64 whether bytes after follow, its bytes after; for a constant: its bytes
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_library.h"

// Fake stacks, one a fiber, cost more than all the rest; and there is no thread to wait for at the end.
extern "C" const char* __asan_default_options() {
  return "detect_stack_use_after_return=0";
}
extern "C" const char* __tsan_default_options() {
  return "atexit_sleep_ms=0";
}

namespace {

const char* const kUsage = "usage: replay KERNELS.so FILE.launch... [--schedule N] [--seed N] [--repeat N]";

struct Buffer {
  uint32_t index;
  std::vector<char> before, after;
};

using Constants = std::map<uint32_t, std::vector<char>>;

struct Recording {
  std::string kernel;
  Constants constants;
  MslLaunch launch;
  std::vector<Buffer> buffers;
  size_t threadgroup_bytes[MSL_BUFFERS] = {};
};

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), stream_(path, std::ios::binary) {
    if (!stream_) throw std::runtime_error(path + ": cannot be read");
  }
  template <typename T>
  T number() {
    T value;
    bytes(&value, sizeof value);
    return value;
  }
  template <typename Container>
  Container block(uint64_t size) {
    Container value(size, 0);
    bytes(value.data(), size);
    return value;
  }
  void bytes(void* to, uint64_t size) {
    if (!stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(size)))
      throw std::runtime_error(path_ + ": ends too early");
  }

 private:
  std::string path_;
  std::ifstream stream_;
};

void read_binding(Reader& reader, Recording& recording) {
  const auto kind = reader.number<uint32_t>(), index = reader.number<uint32_t>();
  const auto bytes = reader.number<uint64_t>();
  if (kind > 2 || index >= MSL_BUFFERS)
    throw std::runtime_error("binding of kind " + std::to_string(kind) + ", index " + std::to_string(index));
  if (kind == 1) {
    recording.threadgroup_bytes[index] = bytes;
    return;
  }
  if (kind == 2) {
    recording.constants[index] = reader.block<std::vector<char>>(bytes);
    return;
  }
  Buffer buffer{index, reader.block<std::vector<char>>(bytes), {}};
  if (reader.number<uint64_t>()) buffer.after = reader.block<std::vector<char>>(bytes);
  recording.buffers.push_back(std::move(buffer));
}

Recording read_recording(const std::string& path) {
  Reader reader(path);
  Recording recording{};
  if (reader.block<std::string>(4) != "MSLR" || reader.number<uint32_t>() != 1)
    throw std::runtime_error(path + ": not a recorded launch of version 1");
  recording.kernel = reader.block<std::string>(reader.number<uint32_t>());
  MslLaunch& launch = recording.launch;
  for (uint32_t* sizes : {launch.threads_per_threadgroup, launch.threadgroups, launch.threads})
    reader.bytes(sizes, 3 * sizeof *sizes);
  for (uint32_t left = reader.number<uint32_t>(); left > 0; left--) read_binding(reader, recording);
  return recording;
}

// The kernels with one set of function constants.
class Kernels {
 public:
  Kernels(const std::string& path, const Constants& constants) : library_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) throw std::runtime_error(dlerror());
    for (const auto& [index, value] : constants) set(index, value);
    check(function<decltype(msl_start)>("msl_start")());
    launch = function<decltype(msl_launch)>("msl_launch");
  }
  int number(const std::string& name) {
    const int count = function<decltype(msl_kernel_count)>("msl_kernel_count")();
    for (int i = 0; i < count; i++)
      if (name == function<decltype(msl_kernel_name)>("msl_kernel_name")(i)) return i;
    throw std::runtime_error("no kernel " + name);
  }
  decltype(msl_launch)* launch;

 private:
  void set(uint32_t index, const std::vector<char>& value) {
    const int count = function<decltype(msl_constant_count)>("msl_constant_count")();
    for (int i = 0; i < count; i++)
      if (static_cast<uint32_t>(function<decltype(msl_constant_index)>("msl_constant_index")(i)) == index)
        return check(function<decltype(msl_set_constant)>("msl_set_constant")(i, value.data()));
    throw std::runtime_error("no function constant " + std::to_string(index));
  }
  static void check(const char* message) {
    if (message) throw std::runtime_error(message);
  }
  template <typename Function>
  Function* function(const char* name) {
    void* found = dlsym(library_, name);
    if (!found) throw std::runtime_error(dlerror());
    return reinterpret_cast<Function*>(found);
  }
  void* library_;
};

// A file is loaded once and its constants are set once, so every further set of constants gets a copy of the file.
class Library {
 public:
  explicit Library(std::string path) : path_(std::move(path)) {}
  ~Library() {
    for (const std::string& copy : copies_) std::filesystem::remove(copy);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  Kernels& with(const Constants& constants) {
    auto& found = kernels_[constants];
    if (!found) found = std::make_unique<Kernels>(kernels_.size() == 1 ? path_ : copy(), constants);
    return *found;
  }

 private:
  const std::string& copy() {
    copies_.push_back(path_ + "." + std::to_string(getpid()) + "." + std::to_string(copies_.size()));
    std::filesystem::copy_file(path_, copies_.back(), std::filesystem::copy_options::overwrite_existing);
    return copies_.back();
  }
  const std::string path_;
  std::vector<std::string> copies_;
  std::map<Constants, std::unique_ptr<Kernels>> kernels_;
};

// Where the buffers differ from what was recorded, or an empty text.
std::string difference(const Recording& recording, const std::vector<std::unique_ptr<char[]>>& memory) {
  for (size_t b = 0; b < recording.buffers.size(); b++) {
    const Buffer& buffer = recording.buffers[b];
    for (size_t i = 0; i < buffer.after.size(); i++)
      if (memory[b][i] != buffer.after[i])
        return "buffer " + std::to_string(buffer.index) + " differs from byte " + std::to_string(i);
  }
  return "";
}

// Memory of the recorded size exactly, so that AddressSanitizer knows where a buffer ends.
std::string run(Kernels& kernels, Recording& recording, int schedule, uint64_t seed) {
  void* pointers[MSL_BUFFERS] = {};
  std::vector<std::unique_ptr<char[]>> memory;
  for (const Buffer& buffer : recording.buffers) {
    memory.emplace_back(new char[buffer.before.size()]);
    memcpy(memory.back().get(), buffer.before.data(), buffer.before.size());
    pointers[buffer.index] = memory.back().get();
  }
  MslLaunch launch = recording.launch;
  launch.buffers = pointers;
  launch.threadgroup_bytes = recording.threadgroup_bytes;
  launch.schedule = schedule;
  launch.seed = seed;
  const char* message = kernels.launch(kernels.number(recording.kernel), &launch);
  return message ? message : difference(recording, memory);
}

struct Options {
  std::vector<std::string> files;  // the kernels first
  long schedule = 0, seed = 1, repeat = 1;
};

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    long* number = argument == "--schedule" ? &options.schedule
                   : argument == "--seed"   ? &options.seed
                   : argument == "--repeat" ? &options.repeat
                                            : nullptr;
    if (argument.rfind("--", 0) != 0) options.files.push_back(argument);
    else if (number && i + 1 < count) *number = strtol(arguments[++i], nullptr, 0);
    else throw std::runtime_error(kUsage);
  }
  if (options.files.size() < 2) throw std::runtime_error(kUsage);
  return options;
}

// Returns how many launches did not give what was recorded.
int replay(const Options& options) {
  Library library(options.files[0]);
  int failures = 0;
  for (size_t f = 1; f < options.files.size(); f++) {
    Recording recording = read_recording(options.files[f]);
    Kernels& kernels = library.with(recording.constants);
    for (long turn = 0; turn < options.repeat; turn++) {
      const uint64_t seed = options.seed + turn;
      const std::string problem = run(kernels, recording, static_cast<int>(options.schedule), seed);
      printf("%s %s seed %llu: %s\n", options.files[f].c_str(), recording.kernel.c_str(),
             static_cast<unsigned long long>(seed), problem.empty() ? "same" : problem.c_str());
      failures += !problem.empty();
    }
  }
  return failures;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return replay(parse(count, arguments)) != 0;
  } catch (const std::exception& error) {
    fprintf(stderr, "replay: %s\n", error.what());
    return 1;
  }
}
