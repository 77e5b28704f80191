// int4kv._C: importing it registers the ops; it carries what the build knows about itself.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "format.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["format_version"] = INT4KV_FORMAT_VERSION;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

} // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build and backend facts of int4kv; importing it registers torch.ops.int4kv.*";
  m.def("build_info", &build_info, "torch and compiler versions this library was built with, and its backends");
}
