// clang gives every Objective-C++ function GCC's Objective-C personality, under which a C++ exception (TORCH_CHECK)
// terminates. This one, linked into each library of the rig, sends Objective-C exceptions there and all others to C++'s.
#include <dlfcn.h>
#include <unwind.h>

#include <cstdint>

using Personality = _Unwind_Reason_Code (*)(int, _Unwind_Action, uint64_t, _Unwind_Exception*, _Unwind_Context*);

extern "C" _Unwind_Reason_Code __gxx_personality_v0(int, _Unwind_Action, uint64_t, _Unwind_Exception*, _Unwind_Context*);

extern "C" __attribute__((visibility("hidden"))) _Unwind_Reason_Code __gnu_objc_personality_v0(
    int version, _Unwind_Action actions, uint64_t exception_class, _Unwind_Exception* exception, _Unwind_Context* context) {
  constexpr uint64_t kObjectiveC = 0x474E55434F424A43;  // "GNUCOBJC"
  static const auto objective_c =
      reinterpret_cast<Personality>(dlsym(dlopen("libobjc.so.4", RTLD_LAZY | RTLD_NOLOAD), "__gnu_objc_personality_v0"));
  const auto chosen = exception_class == kObjectiveC && objective_c ? objective_c : __gxx_personality_v0;
  return chosen(version, actions, exception_class, exception, context);
}
