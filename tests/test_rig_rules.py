"""The rig's Metal compiler: what Metal would reject it rejects, by file and line; torch's own kernels it accepts."""
from pathlib import Path

import pytest
import torch

from rig.msl.compile import compile_metal
from rig.msl.host import Library
from rig.msl.lint import check_address_spaces
from rig.msl.translate import translate
from rig.msl.translate_tokens import Problem

METAL = Path(__file__).parents[1] / "csrc" / "metal"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
FIRST_LINE = 3  # of a source after HEADER


def written(folder, source):
    path = folder / "kernels.metal"
    path.write_text(HEADER + source)
    return path


def kernels_of(source, folder, constants=None, **options):
    return list(Library(compile_metal(source, folder / "kernels.so", **options), constants).kernels)


# Each rule: a name, a source with the mark @ before the line at fault, words of the message.
REJECTED = {
    "double": ("inline float f(float x) {\n@return double(x);\n}", "no double"),
    "goto": ("inline float f(float x) {\n@goto end;\nend: return x; }", "no goto"),
    "new": ("inline int f() {\n@int n = *new int(3);\nreturn n; }", "no new"),
    "delete": ("inline void f(thread int* p) {\n@delete p;\n}", "no delete"),
    "try": ("inline int f() {\n@try { return 1; } catch (...) { return 2; } }", "no try"),
    "throw": ("inline int f() {\n@throw 1;\n}", "no throw"),
    "virtual": ("struct S {\n@virtual void f();\n};", "no virtual"),
    "keyword": ("inline int f(int x) {\n@int fragment = x;\nreturn fragment; }", "fragment is a keyword of Metal"),
    "long long": ("inline int f(int x) {\n@return int((long long)x); }", "no long long"),
    "noexcept": ("@inline int f() noexcept { return 1; }", "no noexcept"),
    "temporary fragment": ("inline void f(thread simdgroup_float8x8& d) {\n@simdgroup_multiply_accumulate(d, d, d, "
                           "make_filled_simdgroup_matrix<float, 8>(0.0f)); }", "no matching function"),
    "std": ("inline int f() {\n@return std::min(1, 2); }", "no std::"),
    "C++ header": ("@#include <vector>", "file not found"),
    "bytes": ("// fine\n@// caf\u00e9\n", "non-ASCII"),
    "31 buffers": ("@kernel void k(" + ", ".join(f"device float* b{i}" for i in range(32)) + ") {}", "more than 31"),
    "index 31": ("kernel void k(\n@device float* x [[buffer(31)]]) {}", "must be 0 to 30"),
    "index a name": ("@kernel void k(device float* x [[buffer(first)]]) {}", "must be a number"),
    "index twice": ("kernel void k(device float* x [[buffer(1)]],\n@device float* y [[buffer(1)]]) {}",
                    "'x' and 'y' of kernel 'k' share [[buffer(1)]]"),
    "no attribute": ("kernel void k(device float* x,\n@uint i) {}", "'i' of kernel 'k' has no attribute"),
    "unknown attribute": ("kernel void k(device float* x,\n@uint i [[thread_position]]) {}",
                          "unknown attribute [[thread_position]]"),
    "unknown function attribute": ("@[[host]] kernel void k(device float* x) {}", "unknown attribute [[host]]"),
    "built-in of a wrong type": ("@kernel void k(device float* x, int i [[thread_position_in_grid]]) {}", "uint, ushort"),
    "buffer in thread": ("@kernel void k(thread float* x [[buffer(0)]]) {}", "device or constant"),
    "kernel that returns": ("@kernel int k(device float* x) { return 1; }", "must return void"),
    "two of one name": ("kernel void k(device float* x) {}\n@[[host_name(\"k\")]] kernel void l(device float* x) {}",
                        "two kernels are named 'k'"),
    "instance of no kernel": ("template <int n> void f(device int* x) {}\n@template [[host_name(\"f\")]] [[kernel]] "
                              "decltype(f<1>) f<1>;", "is not one"),
    "pointer parameter": ("@inline float f(const float* x) { return *x; }", "needs an address space"),
    "reference parameter": ("@inline void f(int& x) { x = 1; }", "needs an address space"),
    "second level": ("@inline void f(device float** x) {}", "needs an address space"),
    "local pointer": ("inline int f(int x) {\n@int* p = &x;\nreturn *p; }", "needs an address space"),
    "loop pointer": ("inline int f(thread int* x) {\n@for (const int* p = x; *p;) return *p;\nreturn 0; }",
                     "needs an address space"),
    "cast": ("inline int f(device uint* x) {\n@return *(int*)x; }", "needs an address space"),
    "named cast": ("inline int f(device uint* x) {\n@return *reinterpret_cast<int*>(x); }", "needs an address space"),
    "member pointer": ("struct S {\n@float* x;\n};", "needs an address space"),
    "returned pointer": ("@float* f(thread float* x) { return x; }", "needs an address space"),
    "threadgroup initialiser": ("kernel void k(device float* x) {\n@threadgroup float y = 1;\n}", "initialiser"),
    "threadgroup array initialiser": ("kernel void k(device float* x) {\n@threadgroup float y[2] = {1, 2};\n}",
                                      "initialiser"),
    "threadgroup in a function": ("inline void f() {\n@threadgroup float y[2];\n}", "declared in a kernel"),
    "threadgroup in a file": ("@threadgroup float y[2];", "declared in a kernel"),
    "write to constant": ("kernel void k(constant float& x) {\n@x = 1;\n}", "const-qualified"),
    "write to a constant array": ("kernel void k(constant float* x) {\n@x[0] = 1;\n}", "read-only"),
    "unknown name": ("kernel void k(device float* x) {\nthreadgroup float a[2],\n  b[2];\n\n@x[0] = missing;\n}",
                     "'missing'"),
    "recursion": ("@inline int f(int n) { return n < 1 ? 0 : f(n - 1); }\n"
                  "kernel void k(device int* x) { x[0] = f(x[0]); }", "no recursion: f -> f"),
    "recursion of two": ("inline int g(int n);\n@inline int f(int n) { return n < 1 ? 0 : g(n - 1); }\n"
                         "inline int g(int n) { return f(n); }\n"
                         "kernel void k(device int* x) { x[0] = f(x[0]); }", "no recursion: f -> g -> f"),
}

# Neighbours of the rules that are right.
ACCEPTED = """
// double, goto, new and std:: in a comment
struct Doubled { float doubled; Doubled(const thread Doubled&) = delete; };
kernel void most_buffers(BUFFERS) { b0[0] = b30[0]; }
kernel void free_indices(device float* x [[buffer(30)]], constant float& y [[buffer(0)]],
                         threadgroup float* z [[threadgroup(0)]]) {}
kernel void builtins(device float* x, uint i [[thread_position_in_grid]], ushort3 j [[threads_per_threadgroup]]) {}
[[max_total_threads_per_threadgroup(64)]] kernel void limited(device float* x) {}
inline float first(const device float* x, thread float& y, constant float* const z) { return x[0] * y + z[0]; }
inline float first(const thread float* x) { return *x; }
inline void both_levels(device float* thread* x) { *x = *x + 1; }
inline int product(int a, int b) { return (a) * b + (a & b); }
inline uint bits(device float* x) { return *(device uint*)x + *reinterpret_cast<const device uint*>(x); }
kernel void shared(device float* x) { threadgroup float y[2], z; threadgroup float* p = y; p[0] = z = x[0]; }
template <int n> inline int depth() { return n + depth<n - 1>(); }
template <> inline int depth<0>() { return 0; }
inline int twice(int x) { return 2 * x; }
inline int2 twice(int2 x) { return int2(twice(x.x), twice(x.y)); }
kernel void not_recursive(device int2* x, constant int& n) { x[0] = twice(int2(depth<3>(), n)); }
""".replace("BUFFERS", ", ".join(f"device float* b{i}" for i in range(31)))


@pytest.mark.parametrize("rule", REJECTED)
def test_what_metal_rejects_is_rejected_at_its_line(rule, tmp_path):
    marked, words = REJECTED[rule]
    line = FIRST_LINE + marked.split("@")[0].count("\n")
    source = written(tmp_path, marked.replace("@", ""))
    with pytest.raises(Problem) as problem:
        compile_metal(source, tmp_path / "kernels.so", lint=False)
    assert f"{source}:{line}:" in str(problem.value) and words in str(problem.value)


def test_neighbours_of_the_rules_are_accepted(tmp_path):
    assert len(kernels_of(written(tmp_path, ACCEPTED), tmp_path)) == 6


# Address spaces: what is wrong, in the body of a kernel with `device float* d, constant float* c, threadgroup float* g`.
WRONG_SPACES = {
    "device as thread": "read(d);",
    "constant as thread": "read(c);",
    "threadgroup as device": "write(g);",
    "constant as device": "write(c);",
    "threadgroup into device pointer": "device float* p = g;",
    "space lost in auto": "auto p = g; write(p);",
    "write to constant": "c[0] = 1;",
    "reference to another space": "thread float& r = d[0];",
    "method on a device object": "((device Couple*)d)->sum();",
    "matrix from thread memory": "simdgroup_float8x8 m; thread float t[64]; simdgroup_load(m, t);",
    "in a template": "twice<2>(g);",
}
SPACES = """
struct Couple { float a, b; float sum() const { return a + b; } float sum() const constant { return a - b; } };
inline float read(const thread float* x) { return *x; }
inline void write(device float* x) { *x = 1; }
template <int n> inline float twice(const device float* x) { return n * *x; }
kernel void k(device float* d, constant float* c, threadgroup float* g) {
  BODY
}
"""
RIGHT_SPACES = """float t = d[0] + c[0] + g[0]; read(&t); write(d); device float* p = d; auto q = p; write(q);
  Couple pair = {1, 2}; t = pair.sum() + ((constant Couple*)c)->sum();
  device Couple* there = (device Couple*)d; pair = *there; *there = pair;
  float4 v = float4(d[0], c[0], g[0], 1); v.xz = v.wy + half2(v.xy).yx.x; ((device float4*)d)[0] = v * 2;
  simdgroup_float8x8 m; simdgroup_load(m, g, 8); simdgroup_multiply_accumulate(m, m, m, m); simdgroup_store(m, d, 8);
  half h = as_type<half2>(uint(3)).x; bfloat b = bfloat(t); b += bfloat(h); t = max(t, float(b)) + twice<2>(d);
  atomic_fetch_add_explicit((device atomic_uint*)d, 1u, memory_order_relaxed); t = fast::exp2(t) + simd_sum(t);"""


@pytest.mark.parametrize("case", WRONG_SPACES)
def test_a_wrong_address_space_is_rejected_at_its_line(case, tmp_path):
    source = written(tmp_path, SPACES.replace("BODY", WRONG_SPACES[case]))
    with pytest.raises(Problem, match=f"kernels.metal:{FIRST_LINE + 6}:.*error"):
        check_address_spaces(source)


def test_right_address_spaces_are_accepted(tmp_path):
    assert kernels_of(written(tmp_path, SPACES.replace("BODY", RIGHT_SPACES)), tmp_path) == ["k"]


@pytest.mark.parametrize("source", sorted(METAL.glob("*.metal")), ids=lambda path: path.stem)
def test_the_products_kernels_compile_and_keep_their_address_spaces(source, tmp_path):
    attention = dict(k_bits=4, v_bits=4, codebook=1, paged=0, decode=0)
    constants = dict(quantize=dict(paged=0), dequantize=None).get(source.stem, attention)
    assert kernels_of(source, tmp_path, constants, include_dirs=[METAL.parent])


TORCH_KERNELS = {
    "sdpa_vector": ("DecodeAttention.h", r"^sdpa_vector_(half_128_128|bfloat_64_64)_masknone$"),
    "sdpa_vector_2pass": ("DecodeAttention.h", r"^sdpa_vector_2pass_(1_half_128_128_masknone|2_half_128)$"),
    "prefill_attention": ("PrefillAttention.h",
                          r"^prefill_attention_(float16|bfloat16)_bq32_bk16_bd128_wm4_wn1_hm0_dc1_mask\w*16$"),
    "sort_block": ("SortMerge.h", r"^sort_block_(float|bfloat)_tptg256$"),
    "radix": ("SortRadix.h", r"^radix_(scan|count_float_8bit)$"),
}


@pytest.mark.parametrize("name", TORCH_KERNELS)
def test_torchs_own_kernels_compile_unmodified(name, tmp_path):
    header, only = TORCH_KERNELS[name]
    includes = "#include <c10/metal/utils.h>\nusing namespace c10::metal;\n"
    includes += f"#include <ATen/native/mps/kernels/{header}>\n"
    source = written(tmp_path, includes)
    kernels = kernels_of(source, tmp_path, include_dirs=[TORCH_INCLUDE], only=only)
    assert sorted(kernels) == translate(source, [TORCH_INCLUDE], only=only).host_names != []


def test_torchs_metal_library_keeps_the_rules(tmp_path):
    headers = ("atomic", "error", "expm1f", "igamma", "indexing", "random", "reduction_utils", "special_math", "utils")
    source = written(tmp_path, "".join(f"#include <c10/metal/{header}.h>\n" for header in headers))
    check_address_spaces(source, [TORCH_INCLUDE])
