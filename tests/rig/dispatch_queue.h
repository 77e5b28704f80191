// A serial queue runs one block at a time, on the thread that asked for it.
#pragma once
#include <dispatch/dispatch.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

struct dispatch_object_s {
  virtual ~dispatch_object_s() = default;
};

struct dispatch_queue_s final : dispatch_object_s {
  explicit dispatch_queue_s(const char* name) : label(name ? name : "") {}

  bool is_running_on_this_thread() const {
    return owner.load() == std::this_thread::get_id();
  }

  const std::string label;
  std::mutex mutex;
  std::atomic<std::thread::id> owner{};
  uint64_t blocks = 0;  // blocks run so far, the current one included
};

struct dispatch_data_s final : dispatch_object_s {
  std::vector<char> bytes;
};
