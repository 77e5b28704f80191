"""The rig's Metal compiler: what Metal has and C++ lacks runs on the CPU as Metal would run it."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rig.msl.compile import compile_metal
from rig.msl.host import KernelError, Library
from rig.msl.translate_tokens import Problem

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


def written(folder, source, name="kernels.metal"):
    path = folder / name
    path.write_text(HEADER + source)
    return path


def compiled(folder, source, constants=None, **options):
    library = compile_metal(written(folder, source), folder / "kernels.so", **options)
    return Library(library, constants)


def run_one(library, kernel, count, *buffers, **options):
    """Runs `kernel` with one threadgroup of `count` threads; buffer 0 is the result, `count` float32."""
    out = np.full(count, np.nan, np.float32)
    library.launch(kernel, {0: out, **dict(enumerate(buffers, 1))}, count, 1, **options)
    return out


def test_every_spelling_of_an_instantiation_is_a_kernel_of_its_own(tmp_path):
    library = compiled(tmp_path, """
        template <typename T, int n>
        [[kernel]] void scaled(device T* x [[buffer(0)]], constant T& y [[buffer(1)]],
                               uint i [[thread_position_in_grid]]) {
          x[i] = y * n;
        }
        typedef void scaled_type(device float*, constant float&, uint);
        template [[host_name("first")]] [[kernel]] void scaled<float, 2>(
            device float* x [[buffer(0)]], constant float& y [[buffer(1)]], uint i [[thread_position_in_grid]]);
        template [[host_name("sec" "ond")]] [[kernel]] decltype(scaled<float, 3>) scaled<float, 3>;
        template [[host_name("third")]] kernel scaled_type scaled<float, (1 < 2 ? 4 : 0)>;
        namespace inner {
        template <typename T> kernel void deduced(device T* x, constant T& y, uint i [[thread_position_in_grid]]) {
          x[i] = y * 5;
        }
        }
        template [[host_name("fourth")]] [[kernel]] void inner::deduced(device float* x, constant float& y, uint i);
    """)
    assert sorted(library.kernels) == ["first", "fourth", "second", "third"]
    for factor, name in enumerate(("first", "second", "third", "fourth"), 2):
        assert run_one(library, name, 1, np.float32([10]))[0] == 10 * factor


def test_parameters_without_an_index_take_the_free_ones(tmp_path):
    library = compiled(tmp_path, """
        kernel void k(device float* a, constant float& b [[buffer(0)]], device float* c,
                      threadgroup float* d, uint i [[thread_position_in_grid]]) { d[i] = b; a[i] = d[i]; c[i] = -b; }""")
    a, c = np.zeros(1, np.float32), np.zeros(1, np.float32)
    library.launch("k", {0: np.float32([7]), 1: a, 2: c}, 1, 1, threadgroup_bytes={0: 16})
    assert (a[0], c[0]) == (7, -7)


def test_threadgroup_variables_of_every_form_are_shared(tmp_path):
    library = compiled(tmp_path, """
        struct Couple { float a, b; };
        template <int n> [[kernel]] void k(device float* x, uint i [[thread_index_in_threadgroup]]) {
          constexpr int half_of = n / 2;
          threadgroup float first[half_of],
                            second[half_of][2], third;
          threadgroup Couple pairs[n > 2 ? n : 2];
          threadgroup metal::vec<float, 4> vectors[n];
          if (i == 0) third = 100;
          first[i % half_of] = i; second[i % half_of][i / half_of] = i;
          pairs[i].b = i; vectors[i].w = i;
          threadgroup_barrier(mem_flags::mem_threadgroup);
          uint j = n - 1 - i;
          x[i] = third + second[j % half_of][j / half_of] + pairs[j].b + vectors[j].w;
        }
        template [[host_name("k")]] [[kernel]] decltype(k<8>) k<8>;""")
    assert run_one(library, "k", 8).tolist() == [100 + 3 * (7 - i) for i in range(8)]


CONSTANTS = """
    constant int factor [[function_constant(0)]];
    constant float shift [[function_constant(3)]];
    constant bool has_shift = is_function_constant_defined(shift);
    constant bool has_other [[function_constant(4)]];
    kernel void k(device float* x, constant float& other [[buffer(1), function_constant(has_other)]],
                  uint i [[thread_position_in_grid]]) {
      x[i] = factor * int(i) + (has_shift ? shift : 0) + (has_other ? other : 0);
    }"""


def test_function_constants_by_name_and_index(tmp_path):
    library = compiled(tmp_path, CONSTANTS, {"factor": 3, 3: 0.5, "has_other": True})
    assert run_one(library, "k", 3, np.float32([100])).tolist() == [100.5, 103.5, 106.5]
    another = Library(tmp_path / "kernels.so", {"factor": -1, "has_other": False})
    assert run_one(another, "k", 3).tolist() == [0, -1, -2]
    with pytest.raises(KernelError, match="factor"):
        Library(tmp_path / "kernels.so", {"has_other": False})
    with pytest.raises(KeyError, match="nothing"):
        Library(tmp_path / "kernels.so", {"nothing": 1})


def test_literals_have_metals_types(tmp_path):
    library = compiled(tmp_path, """
        kernel void k(device float* x) {
          static_assert(sizeof(1.0) == 4 && sizeof(1e3) == 4 && sizeof(.5h) == 2 && sizeof(3H) == 2, "");
          static_assert(sizeof(1.5bf) == 2, "");
          x[0] = 0.1 * 3; x[1] = 0.1h; x[2] = 0.1bf; x[3] = 1e-3f + 0x1p4f + 0xbf;
        }""")
    x = np.zeros(4, np.float32)
    library.launch("k", {0: x}, 1, 1)
    assert x.tolist() == [np.float32(0.1) * np.float32(3), np.float16(0.1), 0.10009765625, np.float32(207.001)]


# (1 + e)^2 - 1 - 2e is e^2 exactly when fused, and 0 when the product is rounded first (e = 2^-13).
CONTRACTION = """
    inline float plain(float a, float c) { return a * a + c; }
    inline float block(float a, float c) {
    #pragma METAL fp contract(off)
      return a * a + c;
    }
    #pragma METAL fp contract(off)
    template <typename T> inline T after(T a, T c) { return a * a + c; }
    kernel void k(device float* x, constant float& a, constant float& c) {
      x[0] = plain(a, c); x[1] = block(a, c); x[2] = after(a, c);
    }"""


@pytest.mark.parametrize("mode, plain", [("fast", 2.0 ** -26), ("off", 0.0)])
def test_contraction_follows_the_pragma(mode, plain, tmp_path):
    library, x, e = compiled(tmp_path, CONTRACTION, fp_contract=mode), np.zeros(3, np.float32), 2.0 ** -13
    library.launch("k", {0: x, 1: np.float32([1 + e]), 2: np.float32([-1 - 2 * e])}, 1, 1)
    assert x.tolist() == [plain, 0, 0]


def test_overloads_and_methods_per_address_space(tmp_path):
    library = compiled(tmp_path, """
        struct Sum {
          float a, b;
          float get() const thread { return a + b; }
          float get() const device { return a + b; }
          float get() const constant { return a + b; }
        };
        inline float load(const device float* x) { return *x; }
        inline float load(const thread float* x) { return *x; }
        inline float load(constant float* x) { return *x; }
        #define MANY 2
        kernel void k(device float* x, constant Sum* s, uint i [[thread_position_in_grid]]) {
          Sum own = {1, 2};
          float t = 0;
        #pragma unroll(MANY)
          for (int n = 0; n < MANY; n++) t += load(&own.a);
          x[i] = t + own.get() + s->get() + load(&s->b);
        }""")
    assert run_one(library, "k", 1, np.float32([10, 20]))[0] == 2 + 3 + 30 + 20


def test_messages_name_the_header_that_is_wrong(tmp_path):
    (tmp_path / "part.h").write_text("// ok\ninline int f() { return 1 }\n")
    source = written(tmp_path, '#include "part.h"\nkernel void k(device int* x) { x[0] = f(); }')
    with pytest.raises(Problem, match=r"part.h:2:\d+: error: expected ';'"):
        compile_metal(source, tmp_path / "kernels.so")


def test_a_changed_header_is_compiled_again(tmp_path):
    header, source = tmp_path / "value.h", '#include "value.h"\nkernel void k(device float* x) { x[0] = VALUE; }'
    for value in (1, 2):
        header.write_text(f"#define VALUE {value}\n")
        assert run_one(compiled(tmp_path, source), "k", 1)[0] == value


def test_command_line(tmp_path):
    source = written(tmp_path, "kernel void k(device float* x) { x[0] = VALUE; }\nkernel void other(device float* x) {}")
    command = [sys.executable, "-m", "rig.msl.compile", str(source), str(tmp_path / "k.so"), "--only", "^k$"]
    good = subprocess.run([*command, "-D", "VALUE=3"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (good.returncode, good.stderr) == (0, "")
    library = Library(tmp_path / "k.so")
    assert list(library.kernels) == ["k"] and run_one(library, "k", 1)[0] == 3
    script = [sys.executable, str(Path(__file__).parent / "rig" / "msl" / "compile.py"), *command[3:]]
    bad = subprocess.run([*script, "-D", "VALUE=double(3)"], capture_output=True, text=True)
    assert (bad.returncode, bad.stderr) == (1, f"{source}:3: error: Metal has no double: use float\n")
    without_clang = subprocess.run(script, capture_output=True, text=True, env={"PATH": ""})
    assert without_clang.returncode == 1 and "apt-get install clang-19" in without_clang.stderr
