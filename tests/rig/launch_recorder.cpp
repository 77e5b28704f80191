#include "launch_recorder.h"

#include <atomic>
#include <filesystem>
#include <fstream>

#include "modes.h"
#include "recorded_dispatch.h"

namespace rig {
namespace {

std::string next_path() {
  static std::atomic<int> number{0};
  char name[32];
  std::snprintf(name, sizeof name, "/%05d.launch", number++);
  std::filesystem::create_directories(modes().record_folder);
  return modes().record_folder + name;
}

class Writer {
 public:
  explicit Writer(const std::string& path) : file_(path, std::ios::binary) {}
  template <typename T>
  void number(T value) {
    bytes(&value, sizeof value);
  }
  void bytes(const void* first, size_t size) {
    file_.write(static_cast<const char*>(first), static_cast<std::streamsize>(size));
  }
  bool is_good() const { return file_.good(); }

 private:
  std::ofstream file_;
};

uint32_t count_bindings(const RecordedDispatch& dispatch) {
  auto bindings = static_cast<uint32_t>(dispatch.instance->constants().size());
  for (size_t i = 0; i < kBindings; i++) {
    bindings += dispatch.uses_buffer(i) + dispatch.uses_threadgroup(i);
  }
  return bindings;
}

void write_head(Writer& writer, const RecordedDispatch& dispatch) {
  writer.bytes("MSLR", 4);
  writer.number<uint32_t>(1);
  writer.number(static_cast<uint32_t>(dispatch.name().size()));
  writer.bytes(dispatch.name().data(), dispatch.name().size());
  writer.bytes(&dispatch.grid, sizeof dispatch.grid);
  writer.number(count_bindings(dispatch));
}

void write_binding(Writer& writer, uint32_t kind, size_t index, size_t bytes) {
  writer.number(kind);
  writer.number(static_cast<uint32_t>(index));
  writer.number(static_cast<uint64_t>(bytes));
}

void write_constants(Writer& writer, const RecordedDispatch& dispatch) {
  for (const FunctionConstant& constant : dispatch.instance->constants()) {
    write_binding(writer, 2, constant.index, constant.value.size());
    writer.bytes(constant.value.data(), constant.value.size());
  }
}

} // namespace

LaunchRecorder::LaunchRecorder(const RecordedDispatch& dispatch) : dispatch_(dispatch) {
  if (modes().record_folder.empty()) return;
  path_ = next_path();
  for (size_t i = 0; i < kBindings; i++) {
    const char* first = dispatch.buffers[i].data();
    before_.emplace_back(first, first + (dispatch.uses_buffer(i) ? dispatch.buffers[i].bytes : 0));
  }
  write(false);
}

void LaunchRecorder::write_results() const {
  if (!path_.empty()) write(true);
}

void LaunchRecorder::write(bool finished) const {
  Writer writer(path_);
  write_head(writer, dispatch_);
  write_constants(writer, dispatch_);
  for (size_t i = 0; i < kBindings; i++) {
    const auto& buffer = dispatch_.buffers[i];
    if (dispatch_.uses_buffer(i)) {
      write_binding(writer, 0, i, buffer.bytes);
      writer.bytes(before_[i].data(), buffer.bytes);
      writer.number<uint64_t>(finished);
      if (finished) writer.bytes(buffer.data(), buffer.bytes);
    }
    if (dispatch_.uses_threadgroup(i)) write_binding(writer, 1, i, dispatch_.threadgroup_bytes[i]);
  }
  RIG_CHECK(writer.is_good(), "cannot write %s", path_.c_str());
}

} // namespace rig
