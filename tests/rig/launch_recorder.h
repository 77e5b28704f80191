// RIG_RECORD=DIR: every dispatch becomes a file that msl/replay.cpp runs again. Little endian:
//
//   "MSLR"  u32 version = 1  u32 length, name  u32[3] threads per threadgroup  u32[3] threadgroups  u32[3] threads
//   u32 bindings, each:  u32 kind (0 buffer, 1 threadgroup, 2 function constant)  u32 index  u64 bytes
//                        kind 0: the bytes before the run, u64 1, the bytes after it  (u64 0 and none: it did not finish)
//                        kind 2: the constant's bytes
#pragma once
#include <cstdio>
#include <string>
#include <vector>

namespace rig {

struct RecordedDispatch;

class LaunchRecorder {
 public:
  // Copies the buffers and writes a file without results; does nothing without RIG_RECORD.
  explicit LaunchRecorder(const RecordedDispatch& dispatch);
  void write_results() const;

 private:
  void write(bool finished) const;

  const RecordedDispatch& dispatch_;
  std::string path_;
  std::vector<std::vector<char>> before_;  // by buffer index
};

} // namespace rig
