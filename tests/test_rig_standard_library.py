"""The rig's metal_stdlib: SIMD functions, matrices, atomics, math, integers, vectors, half and bfloat against numpy."""
import numpy as np
import pytest
import torch

from rig.msl.compile import compile_metal
from rig.msl.host import Library

LANES = np.arange(32)
X = np.random.default_rng(1).integers(-9, 10, 32).astype(np.float32)
NAN = np.float32(np.nan)  # what a lane reads that does not exist


def shuffled(source, width=32, values=X):
    """Lane i reads `values` at lane source[i] of its group, NaN outside of it."""
    source = np.asarray(source) % 65536
    return np.where(source < width, values[(LANES & -width) + source % width], NAN)


def per_quad(reduce):
    return np.repeat(reduce(X.reshape(8, 4)), 4)


I = X.astype(np.int64)
QUAD = LANES % 4
SIMD = {  # expression in v (float), n = int(v), lane: its value in every lane, exactly
    "simd_sum(v)": np.full(32, X.sum()),
    "simd_product(0.5f)": np.full(32, 0.5**32),
    "simd_max(v)": np.full(32, X.max()),
    "simd_min(half(v))": np.full(32, X.min()),
    "simd_sum(float2(v, 1)).y": np.full(32, 32),
    "simd_and(n)": np.full(32, np.bitwise_and.reduce(I)),
    "simd_or(ushort(lane & 20))": np.full(32, 20),
    "simd_xor(n)": np.full(32, np.bitwise_xor.reduce(I)),
    "simd_any(lane == 31)": np.ones(32),
    "simd_any(lane == 32)": np.zeros(32),
    "simd_all(lane < 31)": np.zeros(32),
    "simd_all(lane < 32)": np.ones(32),
    "ulong(simd_ballot(v > 0)) >> 16": np.full(32, sum(1 << i for i in range(32) if X[i] > 0) >> 16),
    "simd_ballot(true).all()": np.ones(32),
    "popcount(ulong(simd_active_threads_mask()))": np.full(32, 32),
    "simd_is_first()": LANES == 0,
    "simd_broadcast(v, 7)": np.full(32, X[7]),
    "simd_broadcast_first(v)": np.full(32, X[0]),
    "simd_shuffle(v, ushort(31 - lane))": shuffled(31 - LANES),
    "simd_shuffle_xor(v, 5)": shuffled(LANES ^ 5),
    "simd_shuffle_xor(half2(v, 2), 5).x": shuffled(LANES ^ 5),
    "simd_shuffle_down(v, 3)": shuffled(LANES + 3),
    "simd_shuffle_up(v, 3)": shuffled(LANES - 3),
    "simd_shuffle_rotate_down(v, 3)": shuffled((LANES + 3) % 32),
    "simd_shuffle_rotate_up(v, 3)": shuffled((LANES - 3) % 32),
    "simd_shuffle_and_fill_down(v, -v, 3)": np.where(LANES < 29, 1, -1) * X[(LANES + 3) % 32],
    "simd_shuffle_and_fill_up(v, -v, 3)": np.where(LANES >= 3, 1, -1) * X[(LANES - 3) % 32],
    "simd_prefix_inclusive_sum(n)": np.cumsum(I),
    "simd_prefix_exclusive_sum(v)": np.cumsum(X) - X,
    "simd_prefix_inclusive_product(lane % 8 ? 1.0f : 2.0f)": 2.0 ** (1 + LANES // 8),
    "simd_prefix_exclusive_product(2.0f)": 2.0**LANES,
    "quad_sum(v)": per_quad(lambda q: q.sum(1)),
    "quad_max(v)": per_quad(lambda q: q.max(1)),
    "quad_min(n)": per_quad(lambda q: q.min(1)),
    "quad_any(v > 8)": per_quad(lambda q: (q > 8).any(1)),
    "quad_all(v > -8)": per_quad(lambda q: (q > -8).all(1)),
    "quad_broadcast(v, 2)": per_quad(lambda q: q[:, 2]),
    "quad_shuffle(v, ushort(3 - lane % 4))": shuffled(3 - QUAD, 4),
    "quad_shuffle_xor(v, 1)": shuffled(QUAD ^ 1, 4),
    "quad_shuffle_down(v, 1)": shuffled(QUAD + 1, 4),
    "quad_shuffle_up(v, 1)": shuffled(QUAD - 1, 4),
    "quad_shuffle_rotate_down(v, 1)": shuffled((QUAD + 1) % 4, 4),
    "quad_prefix_inclusive_sum(v)": np.cumsum(X.reshape(8, 4), 1).ravel(),
}
A, B, U = 0x1234abcd, -77, 0xfedcba98
INTEGERS = {  # expression in a, b (int), u (uint): its value
    "popcount(a)": bin(A).count("1"), "clz(a)": 3, "ctz(a << 5)": 5, "clz(ushort(1))": 15, "ctz(0u)": 32,
    "reverse_bits(u)": int(f"{U:032b}"[::-1], 2), "extract_bits(a, 8, 8)": 0xab - 256, "extract_bits(u, 8, 8)": 0xba,
    "insert_bits(u, 0xffu, 4, 8)": U & ~0xff0 | 0xff0, "rotate(u, 8u)": (U << 8 | U >> 24) & 0xffffffff,
    "mulhi(u, u)": U * U >> 32, "mulhi(a, b)": A * B >> 32, "absdiff(a, b)": A - B, "abs(b)": 77,
    "addsat(a, a * 7)": 2**31 - 1, "addsat(u, u)": 2**32 - 1, "subsat(0u, u)": 0, "subsat(b, 2147483647)": -2**31,
    "hadd(b, 6)": -36, "rhadd(b, 6)": -35, "mul24(-3, 5)": -15, "mad24(3u, 5u, 7u)": 22, "max(a, b)": A,
    "min3(3, 1, 2)": 1, "median3(3, 1, 2)": 2, "clamp(b, -5, 5)": -5, "as_type<int>(u)": U - 2**32, "max(int2(1, 2), int2(b, 5)).y": 5,
    "all(uint2(1, 2) < 3u)": 1, "any(int3(1, 2, 3) == int3(3))": 1, "select(1, 2, true)": 2,
    "sizeof(float3) * 100 + sizeof(packed_float3)": 1612, "alignof(half4)": 8, "sizeof(bool) + sizeof(long)": 9,
}
Y = np.linspace(0.02, 0.98, 32, dtype=np.float32)
MATH = {  # expression in x: numpy's float64 function
    "exp(x)": np.exp, "exp2(x)": np.exp2, "exp10(x)": lambda x: 10**x, "log(x)": np.log, "log2(x)": np.log2,
    "log10(x)": np.log10, "sin(x)": np.sin, "cos(x)": np.cos, "tan(x)": np.tan, "asin(x)": np.arcsin, "acos(x)": np.arccos,
    "atan(x)": np.arctan, "sinh(x)": np.sinh, "cosh(x)": np.cosh, "tanh(x)": np.tanh, "asinh(x)": np.arcsinh,
    "acosh(x + 1)": lambda x: np.arccosh(x + 1), "atanh(x)": np.arctanh, "sinpi(x)": lambda x: np.sin(np.pi * x),
    "cospi(x / 4)": lambda x: np.cos(np.pi * x / 4),
    "sqrt(x)": np.sqrt, "rsqrt(x)": lambda x: x**-0.5, "precise::rsqrt(x)": lambda x: x**-0.5, "fast::exp2(x)": np.exp2,
    "pow(x, 2.5f)": lambda x: x**2.5, "powr(x, x)": lambda x: x**x, "atan2(x, 3.0f)": lambda x: np.arctan2(x, 3),
    "fmod(7.0f, x)": lambda x: np.fmod(7, x), "copysign(x, -1.0f)": np.negative,
    "fdim(x, 0.5f)": lambda x: np.maximum(x - 0.5, 0),
    "floor(x * 9)": lambda x: np.floor(x * np.float32(9)), "ceil(x * 9)": lambda x: np.ceil(x * np.float32(9)),
    "rint(x * 9)": lambda x: np.rint(x * np.float32(9)), "trunc(-x * 9)": lambda x: np.trunc(-x * np.float32(9)),
    "round(x * 9)": lambda x: np.floor(x * np.float32(9) + 0.5), "fract(x * 9)": lambda x: x * 9 % 1,
    "abs(-x)": lambda x: x, "fma(x, x, -x)": lambda x: x * x - x, "mix(x, 3.0f, 0.25f)": lambda x: 0.75 * x + 0.75,
    "saturate(x * 4 - 1)": lambda x: np.clip(4 * x - 1, 0, 1), "sign(x - 2)": lambda x: -np.ones_like(x),
    "clamp(x, 0.3f, 0.6f)": lambda x: np.clip(x, np.float32(0.3), np.float32(0.6)),
    "step(0.5f, x)": lambda x: (x >= 0.5) * 1.0, "smoothstep(0.0f, 1.0f, x)": lambda x: x * x * (3 - 2 * x),
    "ldexp(x, 3)": lambda x: 8 * x, "fmax(x, NAN)": lambda x: x, "isnan(x / 0 - x / 0)": np.ones_like,
    "isinf(x / 0)": np.ones_like,
    "dot(float2(x, 2), float2(3, x))": lambda x: 5 * x, "length(float2(3 * x, 4 * x))": lambda x: 5 * x,
    "normalize(float3(x, 0, 0)).x": np.ones_like, "cross(float3(x, 0, 0), float3(0, 2, 0)).z": lambda x: 2 * x,
    "(float2x2(1, 2, 3, 4) * float2(x, 1)).y": lambda x: 2 * x + 4, "exp(float4(x)).w": np.exp,
    "max(float3(x), 0.5f).z": lambda x: np.maximum(x, 0.5),
    "float4(x, 1, 2, 3).wzyx.w": lambda x: x, "swizzled(x)": lambda x: 100 * (x + 5) + 7 + x,
}
SOURCE = """
#include <metal_stdlib>
using namespace metal;
#define float2x2(a, b, c, d) float2x2(float2(a, b), float2(c, d))
float swizzled(float x) {
  float4 v(x, 2, 7, 4);
  v.xz = v.zx + float2(x, 0);
  v.yw += 3;
  return 100 * v.y + v.x + 100 * v.z;
}
"""


def written(folder, source):
    path = folder / "kernels.metal"
    path.write_text(source)
    return Library(compile_metal(path, folder / "kernels.so", lint=False))  # values are the point here


def kernels_of(table, prefix, inputs):
    """A kernel for each expression of a table: it writes the expression's value in every lane."""
    result = "long" if prefix == "integer" else "float"
    return "".join(f"kernel void {prefix}{number}(device {result}* out, device const float* in, "
                   f"uint lane [[thread_index_in_threadgroup]]) {{ {inputs} out[lane] = {result}({expression}); }}\n"
                   for number, expression in enumerate(table))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    simd = kernels_of(SIMD, "simd", "float v = in[lane]; int n = int(v);")
    integer = kernels_of(INTEGERS, "integer", f"int a = {A}, b = {B}; uint u = {U}u;")
    mathematics = kernels_of(MATH, "math", "float x = in[lane];")
    return written(tmp_path_factory.mktemp("library"), SOURCE + simd + integer + mathematics)


def run(library, kernel, values, dtype=np.float32, threads=32, schedule=0):
    out = np.zeros(threads, dtype)
    library.launch(kernel, {0: out, 1: values}, threads, 1, schedule=schedule)
    return out


@pytest.mark.parametrize("expression", SIMD)
def test_simd_functions(library, expression):
    kernel = f"simd{list(SIMD).index(expression)}"
    for schedule in range(4):
        assert np.array_equal(run(library, kernel, X, schedule=schedule), np.float32(SIMD[expression]), equal_nan=True)


def test_a_partial_simdgroup_has_only_its_own_lanes(library):
    def value(expression):
        return run(library, f"simd{list(SIMD).index(expression)}", X, threads=20)

    assert (value("simd_sum(v)") == X[:20].sum()).all() and (value("simd_max(v)") == X[:20].max()).all()
    assert np.array_equal(value("simd_shuffle_down(v, 3)"), np.append(X[3:20], [NAN] * 3), equal_nan=True)
    assert (value("popcount(ulong(simd_active_threads_mask()))") == 20).all()
    assert value("simd_all(lane < 31)").all()


def test_integer_functions(library):
    found = {e: run(library, f"integer{i}", X, np.int64)[0] for i, e in enumerate(INTEGERS)}
    assert found == INTEGERS


def test_math_functions(library):
    """Within 4 units in the last place of the value or of 1: glibc's functions give 1, products in arguments the rest."""
    for number, (expression, function) in enumerate(MATH.items()):
        found, expected = run(library, f"math{number}", Y).astype(np.float64), function(Y.astype(np.float64))
        unit = np.finfo(np.float32).eps * np.maximum(np.abs(expected), 1)
        assert np.all(np.abs(found - expected) <= 4 * unit), expression


def test_half_and_bfloat_round_after_every_operation(tmp_path):
    results = ("a[i] + b[i]", "a[i] - b[i]", "a[i] * b[i]", "a[i] / b[i]", "a[i] + b[i] + a[i]")
    body = " ".join(f"out[5 * i + {number}] = {result};" for number, result in enumerate(results))
    parameters = "(device {0}* out, device const {0}* a, device const {0}* b, uint i [[thread_position_in_grid]])"
    kernels = [f"kernel void {t}_{parameters.format(t)} {{ {body} }}\n" for t in ("half", "bfloat")]
    library = written(tmp_path, "#include <metal_stdlib>\nusing namespace metal;\n" + "".join(kernels))
    for kernel, dtype in (("half_", torch.float16), ("bfloat_", torch.bfloat16)):
        a, b = torch.randn(2, 4096, generator=torch.Generator().manual_seed(3)).exp().to(dtype)
        expected = torch.stack([a + b, a - b, a * b, a / b, a + b + a], 1)
        out = np.zeros((4096, 5), np.uint16)
        library.launch(kernel, {0: out, 1: bits(a), 2: bits(b)}, 256, 16)
        assert np.array_equal(out, bits(expected))


def bits(tensor):
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


MATRICES = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
template <typename T>
kernel void product(device const T* a, device const T* b, device const float* c, device float* d, device T* e,
                    device float* map, uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_matrix<T, 8, 8> x, y, filled = make_filled_simdgroup_matrix<T, 8, 8>(T(2.0f)), diagonal(T(3.0f));
  simdgroup_float8x8 sum;
  simdgroup_load(x, a, 16, ulong2(3, 2));
  simdgroup_load(y, b, 8, ulong2(0, 0), true);
  simdgroup_load(sum, c);
  map[2 * lane] = sum.thread_elements()[0];
  map[2 * lane + 1] = sum.thread_elements()[1];
  simdgroup_multiply_accumulate(sum, x, y, sum);
  simdgroup_store(sum, d);
  simdgroup_multiply(x, filled, diagonal);
  simdgroup_store(x, e, 8, ulong2(0, 0), true);
}
#define INSTANCE(T) template [[host_name(#T)]] kernel void product<T>( \\
    device const T*, device const T*, device const float*, device float*, device T*, device float*, uint);
INSTANCE(half) INSTANCE(bfloat) INSTANCE(float)
"""


@pytest.mark.parametrize("name,dtype", (("half", torch.float16), ("bfloat", torch.bfloat16), ("float", torch.float32)))
def test_simdgroup_matrix(tmp_path, name, dtype):
    library = written(tmp_path, MATRICES)
    generator = torch.Generator().manual_seed(2)
    a, b, c = (torch.randint(-4, 5, shape, generator=generator).to(dtype) for shape in ((10, 16), (8, 8), (8, 8)))
    buffers = [bits(t) if dtype != torch.float32 else t.numpy() for t in (a, b)] + [c.float().numpy()]
    d, e, element = np.zeros((8, 8), np.float32), np.zeros_like(buffers[1]), np.zeros((32, 2), np.float32)
    library.launch(name, dict(enumerate([*buffers, d, e, element])), 32, 1)
    assert np.array_equal(d, (a[2:, 3:11].float() @ b.float().T + c.float()).numpy())
    six = bits(torch.full((), 6.0).to(dtype)) if dtype != torch.float32 else 6
    assert np.array_equal(e, np.full((8, 8), six))
    quad, row = LANES // 4, (LANES // 4 & 4) + LANES // 2 % 4
    column = (quad & 2) * 2 + LANES % 2 * 2
    assert np.array_equal(element, c.float().numpy()[row[:, None], column[:, None] + [0, 1]])


ATOMICS = """
#include <metal_stdlib>
using namespace metal;
#define CHANGE(i, name) atomic_fetch_##name##_explicit(&cells[i], n, memory_order_relaxed)
kernel void change(device atomic_int* cells, device atomic_float* sum, device atomic_uint* maximum,
                   uint i [[thread_position_in_grid]], uint thread_ [[thread_index_in_threadgroup]]) {
  threadgroup atomic_int shared;
  if (thread_ == 0) atomic_store_explicit(&shared, 5, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int n = int(i);
  CHANGE(0, add); CHANGE(1, sub); CHANGE(2, max); CHANGE(3, min); CHANGE(4, and); CHANGE(5, or); CHANGE(6, xor);
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
  atomic_fetch_max_explicit(maximum, i, memory_order_relaxed);
  int old = atomic_load_explicit(&cells[7], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&cells[7], &old, old + 2, memory_order_relaxed, memory_order_relaxed)) {}
  atomic_fetch_add_explicit(&shared, 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int total = atomic_load_explicit(&shared, memory_order_relaxed);
  if (thread_ == 0) atomic_exchange_explicit(&cells[8 + i / 64], total, memory_order_relaxed);
}
"""


def test_atomics(tmp_path):
    library = written(tmp_path, ATOMICS)
    n = np.arange(512)
    for schedule in range(4):
        cells = np.int32([0, 0, -5, 900, -1, 0, 0, 0] + [0] * 8)
        total, maximum = np.zeros(1, np.float32), np.zeros(1, np.uint32)
        library.launch("change", {0: cells, 1: total, 2: maximum}, 64, 8, schedule=schedule)
        assert cells.tolist() == [n.sum(), -n.sum(), 511, 0, 0, 511, np.bitwise_xor.reduce(n), 1024] + [69] * 8
        assert (total[0], maximum[0]) == (256, 511)


def test_a_kernel_may_use_any_name_that_metal_does_not(tmp_path):
    names = ("reduce", "gather", "collective", "add", "pi", "Pair", "Fragment", "Participants", "Site", "Collective",
             "machine", "text", "Register", "Kernel", "Lane", "larger", "own_index", "VectorTraits", "Binding")
    structs = "".join(f"struct {name} {{ float x; }};\n" for name in names)
    body = " ".join(f"{name} v{i} = {{1.0f}}; sum += v{i}.x;" for i, name in enumerate(names))
    kernel = f"kernel void k(device float* out, device const float* in) {{ float sum = in[0]; {body} out[0] = sum; }}"
    library = written(tmp_path, "#include <metal_stdlib>\nusing namespace metal;\n" + structs + kernel)
    assert run(library, "k", X, threads=1)[0] == X[0] + len(names)
