// Compiles kernels as the CUDA backend does, without a GPU: csrc/cuda/compile.cpp, csrc/cuda/driver.cpp and csrc/gpu/kernel.cpp are part
// of this program.
//
//     LD_LIBRARY_PATH=<folder of libnvrtc> compile_kernels FOLDER CAPABILITY  ENTRY SIZE K_BITS V_BITS CODEBOOK PAGED DECODE LARGE  ENTRY ...
//
// Writes FOLDER/<name>-<k_bits>-<v_bits>-<codebook>-<paged>-<decode>-<large>-sm_<capability>.cubin for every kernel. Exits with 1 and the
// compiler's words.
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

#include "../../csrc/cuda/compile.h"

using int4kv::Kernel;

namespace {

uint32_t number(const char* text) {
  return static_cast<uint32_t>(std::stoul(text));
}

void write(const std::string& folder, const Kernel& kernel, int capability) {
  std::string constants;
  for (const uint32_t constant : {kernel.k_bits, kernel.v_bits, kernel.codebook, kernel.paged, kernel.decode, kernel.large}) constants += "-" + std::to_string(constant);
  const std::string path = folder + "/" + kernel.name() + constants + "-sm_" + std::to_string(capability) + ".cubin";
  std::ofstream(path, std::ios::binary) << int4kv::compile(kernel, capability);
}

} // namespace

int main(int count, char** words) {
  try {
    for (int i = 3; i + 7 < count; i += 8) {
      const Kernel kernel{
          static_cast<int4kv::Entry>(number(words[i])), number(words[i + 1]), number(words[i + 2]), number(words[i + 3]), number(words[i + 4]),
          number(words[i + 5]), number(words[i + 6]), number(words[i + 7])};
      write(words[1], kernel, static_cast<int>(number(words[2])));
    }
  } catch (const std::exception& problem) {
    std::fputs(problem.what(), stderr);
    return 1;
  }
  return 0;
}
