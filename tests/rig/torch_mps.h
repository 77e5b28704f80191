// What most Objective-C++ sources for torch's mps device begin with, compiled once.
#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSProfiler.h>
#include <ATen/mps/MPSStream.h>
#include <torch/library.h>
