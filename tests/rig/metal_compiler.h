// Metal source text to a kernel library, by msl/compile.py in a process of its own, cached by content.
#pragma once
#include <map>
#include <string>

namespace rig {

struct MetalSource {
  std::string text;
  std::map<std::string, std::string> macros;
};

// The path of the compiled library, or "" and the compiler's text in *error.
std::string compile_metal(const MetalSource& source, std::string* error);

} // namespace rig
