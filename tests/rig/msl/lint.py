"""Address spaces, checked by clang: the translation read as C++ for OpenCL, whose spaces are as strict as Metal's."""
from .toolchain import CLANG, FOLDER, ToolError, run, scratch_folder
from .translate import translate
from .translate_dialects import Checking
from .translate_tokens import Problem

ABSENT_FEATURES = ("cl_khr_fp64", "__opencl_c_fp64", "__opencl_c_pipes", "__opencl_c_device_enqueue")
COMMAND = [CLANG, "-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "-target", "spir64", "-fdeclspec",
           "-Wno-everything", "-Xclang", "-cl-ext=" + ",".join("-" + name for name in ABSENT_FEATURES),
           f"-I{FOLDER / 'lint'}", "-fsyntax-only"]


def check_address_spaces(source, include_dirs=(), defines=(), only=None):
    """Raises Problem where a pointer or reference of one address space is used as another's, and the like.

    Every kernel is instantiated, so that templates are checked with their arguments.
    """
    translation = translate(source, include_dirs, defines, only, Checking())
    with scratch_folder() as scratch:
        code = scratch / "kernels.clcpp"
        code.write_text(translation.text)
        try:
            run([*COMMAND, code])
        except ToolError as error:
            raise Problem.of_compiler(str(error)) from None
