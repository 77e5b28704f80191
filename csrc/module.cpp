// int4kv._C: importing it registers the ops; it carries what the build knows about itself.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "calls.h"
#include "cpu/kernels.h"
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

py::tuple cpu_kernels() {
  py::list names;
  for (auto set = int4kv::available_kernels(); *set; ++set) names.append((*set)->name);
  return names;
}

std::string use_cpu_kernels(const std::string& name) {
  const std::string before = int4kv::kernels().name;
  int4kv::use_kernels(name.c_str());
  return before;
}

} // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build and backend facts of int4kv; importing it registers torch.ops.int4kv.*";
  m.def("build_info", &build_info, "torch and compiler versions this library was built with, and its backends");
  m.def("cpu_kernels", &cpu_kernels, "names of the CPU kernels that this processor can run, best first");
  m.def("use_cpu_kernels", &use_cpu_kernels, "use these from now on; returns the name of those used so far");
  int4kv::add_calls(m);
}
