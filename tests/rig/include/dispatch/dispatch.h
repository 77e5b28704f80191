// libdispatch as far as Metal code needs it: serial queues, once, data. Two mistakes that a Mac punishes with a hang or
// a crash end the process with a sentence: dispatch_sync on the queue one is already on, and an exception leaving a block.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct dispatch_queue_s* dispatch_queue_t;
typedef struct dispatch_queue_attr_s* dispatch_queue_attr_t;
typedef struct dispatch_data_s* dispatch_data_t;
typedef void (^dispatch_block_t)(void);
typedef intptr_t dispatch_once_t;

#define DISPATCH_QUEUE_SERIAL ((dispatch_queue_attr_t)0)
#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t)0)

#ifdef __cplusplus
extern "C" {
#endif
dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t attributes);
void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block);
void dispatch_once(dispatch_once_t* predicate, dispatch_block_t block);
// Copies the bytes, whatever the destructor; a destructor other than the default is called at once.
dispatch_data_t dispatch_data_create(const void* bytes, size_t size, dispatch_queue_t queue, dispatch_block_t destructor);
size_t dispatch_data_get_size(dispatch_data_t data);
void dispatch_release(void* object);
#ifdef __cplusplus
}
#endif
