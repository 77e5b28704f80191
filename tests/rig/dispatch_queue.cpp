#include "dispatch_queue.h"

#include <exception>

#include "validation.h"

extern "C" {

dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t) {
  return new dispatch_queue_s(label);
}

void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block) {
  RIG_CHECK(
      !queue->is_running_on_this_thread(), "deadlock: dispatch_sync on the serial queue '%s' from a block running on it",
      queue->label.c_str());
  std::lock_guard<std::mutex> lock(queue->mutex);
  queue->owner = std::this_thread::get_id();
  queue->blocks++;
  try {
    block();
  } catch (const std::exception& error) {
    rig::fail("a C++ exception left the block of a plain dispatch_sync, which terminates a Mac's process: %s", error.what());
  } catch (...) {
    rig::fail("an exception left the block of a plain dispatch_sync, which terminates a Mac's process");
  }
  queue->owner = std::thread::id();
}

void dispatch_once(dispatch_once_t* predicate, dispatch_block_t block) {
  static std::recursive_mutex mutex;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (*predicate) return;
  block();
  *predicate = ~static_cast<dispatch_once_t>(0);
}

dispatch_data_t dispatch_data_create(const void* bytes, size_t size, dispatch_queue_t, dispatch_block_t destructor) {
  auto* data = new dispatch_data_s;
  const char* first = static_cast<const char*>(bytes);
  data->bytes.assign(first, first + size);
  if (destructor) destructor();
  return data;
}

size_t dispatch_data_get_size(dispatch_data_t data) {
  return data->bytes.size();
}

void dispatch_release(void* object) {
  delete static_cast<dispatch_object_s*>(object);
}

} // extern "C"
