// GNUstep's headers ask for this name; the blocks runtime of Debian calls it Block.h.
#pragma once
#include <Block.h>
