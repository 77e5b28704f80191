// The types that torch's profiler header mentions.
#pragma once
#include <os/base.h>
#include <os/object.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct os_log_s *os_log_t;
typedef uint8_t os_log_type_t;
