"""The CUDA kernels on the CPU: csrc/cuda's program, compiled by clang against shim/, on the executor of ../msl."""
