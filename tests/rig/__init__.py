"""The rig: an emulated mps device inside torch on Linux, and Metal kernels on the CPU. README.md tells how it works."""
