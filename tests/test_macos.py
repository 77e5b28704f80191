"""The sources compile and link for macOS on Apple Silicon, against every supported torch: shown on any machine, run on none.

What the compiler is given instead of Apple's SDK is itself compared with what Apple's own compiler recorded.
"""

import os
from collections import Counter

import pytest
from macos import crosscompile, proof, stubs, toolchain, wheels
from macos.crosscompile import Compiler
from macos.macho import FLAT, MachO
from macos.metal_cpp import MetalCpp
from macos.toolchain import Refused

MINORS = list(wheels.TORCH)
NEWEST = MINORS[-1]
# Several test processes share the cores.
JOBS = max(1, os.cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
SYSTEM = {"/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib", "/usr/lib/libobjc.A.dylib",
          "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation",
          "/System/Library/Frameworks/CoreFoundation.framework/Versions/A/CoreFoundation",
          "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"}
TORCH = {"@rpath/libc10.dylib", "@rpath/libtorch_cpu.dylib", "@rpath/libtorch_python.dylib"}
LINKER = {"dyld_stub_binder"}
METAL = "#import <Metal/Metal.h>\n"


@pytest.fixture(scope="module", params=MINORS)
def minor(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(minor):
    """int4kv/_C for macOS, as a linker would have made it there."""
    return MachO(crosscompile.build(minor, JOBS))


@pytest.fixture(scope="module")
def metal_cpp():
    return MetalCpp(wheels.metal_cpp())


def test_it_is_an_extension_module_for_macos_14_that_needs_only_torch_and_the_system(bundle):
    libraries = {name for name, _, _ in bundle.libraries}
    assert bundle.minimum_os == "14.0.0" and not bundle.rpaths
    assert "_PyInit__C" in bundle.exports()
    assert {"@rpath/libtorch_cpu.dylib", "@rpath/libc10.dylib"} <= libraries <= SYSTEM | TORCH


def test_every_source_for_a_mac_is_in_it():
    names = {path.name for path in crosscompile.sources()}
    assert {path.name for path in crosscompile.CSRC.rglob("*.mm")} <= names
    assert {"ops.cpp", "module.cpp"} <= names and any(name.endswith(".mm") for name in names)


def test_only_a_source_without_torch_has_one_object_for_every_torch():
    without = [source.name for source in crosscompile.sources() if not Compiler().missing_headers(source)]
    assert {"kernels_neon.cpp", "kernels_portable.cpp"} <= set(without)
    assert {"ops.cpp", "attention.cpp", "module.cpp", "pipelines.mm"}.isdisjoint(without)
    with pytest.raises(Refused, match="'c10/core/Device.h' file not found"):
        Compiler().compile_text("device.cpp", "#include <c10/core/Device.h>\n")


def test_every_symbol_it_needs_is_exported_where_it_is_looked_for(bundle, minor):
    """By torch's own wheel of that minor, by the system's library it is bound to, or by CPython."""
    exported = {facts["install_name"]: set(facts["exports"]) for facts in wheels.links(wheels.torch(minor)).values()}
    exported |= {name: symbols for name, (symbols, _) in stubs.harvest().items()}
    exported["/usr/lib/libSystem.B.dylib"] = stubs.libsystem_symbols() | LINKER
    python = {symbol for symbol, library in bundle.imports().items() if library == FLAT}
    bound = {symbol: library for symbol, library in bundle.imports().items() if library != FLAT}
    assert [(symbol, library) for symbol, library in bound.items() if symbol not in exported[library]] == []
    assert [symbol for symbol in python if not crosscompile.exported_by_python(symbol)] == []
    assert Counter(bound.values())["@rpath/libtorch_cpu.dylib"] > 10 and len(python) > 10


def test_every_selector_it_sends_is_one_that_apple_or_torch_spells(bundle, minor, metal_cpp):
    """The few Objective-C methods declared by hand are in include/; new is declared in Apple's objc/NSObject.h."""
    known = set(metal_cpp.selectors.values()) | proof.selectors_of_torch(minor) | {"new"}
    assert "newComputePipelineStateWithFunction:error:" in bundle.selectors()
    assert set(bundle.selectors()) <= known


MISTAKES = {
    "a misspelt selector": (
        METAL + "void f(id<MTLComputeCommandEncoder> e, id<MTLBuffer> b) { [e setBuffer:b offset:0 atindex:0]; }",
        "instance method '-setBuffer:offset:atindex:' not found"),
    "a message to the wrong object": (
        METAL + "void f(id<MTLCommandBuffer> b, id<MTLComputePipelineState> p) { [b setComputePipelineState:p]; }",
        "instance method '-setComputePipelineState:' not found"),
    "an undeclared @selector": (
        METAL + "SEL f() { return @selector(dispatchThreadgroup:); }",
        "undeclared selector 'dispatchThreadgroup:'"),
    "a method of macOS 15": (
        METAL + "void f(MTLCompileOptions* o) { [o setMathMode:0]; }",
        "instance method '-setMathMode:' not found"),
    "a protocol of macOS 15": (
        METAL + "id f(id<MTLLogState> s) { return s; }",
        "no type or protocol named 'MTLLogState'"),
    "a constant of macOS 15": (
        METAL + "int f() { return MTLLanguageVersion3_2; }",
        "use of undeclared identifier 'MTLLanguageVersion3_2'"),
    "a function of macOS 15": (
        "#include <string.h>\nchar* f(const char* s) { return strchrnul(s, 1); }",
        "'strchrnul' is only available on macOS 15.4 or newer"),
    "a number for a size": (
        METAL + "void f(id<MTLComputeCommandEncoder> e, MTLSize s) { [e dispatchThreadgroups:4 threadsPerThreadgroup:s]; }",
        "no viable conversion from 'int' to 'MTLSize'"),
    "a C string for an NSString": (
        METAL + "id f(id<MTLLibrary> l, const char* name) { return [l newFunctionWithName:name]; }",
        "cannot initialize a parameter of type 'NSString *' with an lvalue of type 'const char *'"),
    "another protocol's object": (
        METAL + "void f(id<MTLComputeCommandEncoder> e, id<MTLTexture> t) { [e setBuffer:t offset:0 atIndex:0]; }",
        "cannot initialize a parameter of type 'id<MTLBuffer>'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_the_compiler(mistake):
    text, message = MISTAKES[mistake]
    with pytest.raises(Refused) as caught:
        Compiler(NEWEST).compile_text(f"{mistake}.mm", text)
    assert message in str(caught.value)


ABSENT = {
    "torch": (
        "namespace at::mps { void* getFastestStream(); }\nvoid* f() { return at::mps::getFastestStream(); }",
        "undefined symbol: at::mps::getFastestStream()"),
    "the system": (
        'extern "C" void dispatch_sync_quickly();\nvoid f() { dispatch_sync_quickly(); }',
        "undefined symbol: dispatch_sync_quickly"),
    "CPython": (
        'extern "C" void PyTuple_Sort();\nvoid f() { PyTuple_Sort(); }',
        "undefined symbol: PyTuple_Sort"),
    "Foundation": (
        METAL + "@interface NSQuickString : NSObject\n@end\nid f() { return [NSQuickString new]; }",
        "undefined symbol: OBJC_CLASS_$_NSQuickString"),
}


@pytest.mark.parametrize("exporter", ABSENT)
def test_what_nobody_exports_is_refused_by_the_linker(exporter):
    text, message = ABSENT[exporter]
    compiler = Compiler(NEWEST)
    with pytest.raises(Refused) as caught:
        compiler.link([compiler.compile_text(f"absent from {exporter}.mm", text)], f"absent from {exporter}.so")
    assert message in str(caught.value)


def test_each_minor_is_held_against_its_own_exports():
    """is_macos_13_or_newer went after torch 2.13."""
    text = "namespace at::mps { enum class MacOSVersion : unsigned; bool is_macos_13_or_newer(MacOSVersion); }\n" \
           "bool f() { return at::mps::is_macos_13_or_newer({}); }"
    older, newer = Compiler("2.13"), Compiler("2.14")
    assert older.link([older.compile_text("version.mm", text)], "version.so").exists()
    with pytest.raises(Refused, match="undefined symbol: at::mps::is_macos_13_or_newer"):
        newer.link([newer.compile_text("version.mm", text)], "version.so")


# metal-cpp says const void* where the SDK says void*.
ENCODED_OTHERWISE = {("MTLIOCommandBuffer", "-loadBytes:size:sourceHandle:sourceHandleOffset:")}


def test_the_declared_methods_have_the_types_of_apples_sdk(metal_cpp):
    sdk = proof.sdk_protocols()
    names = sorted(set(sdk) & metal_cpp.protocols)
    ours = {(name, method): types for name, methods in proof.our_protocols(NEWEST, names).items() if name in names
            for method, types in methods.items()}
    wrong = {(name, method) for (name, method), types in ours.items() if sdk[name].get(method) != types}
    assert wrong == ENCODED_OTHERWISE and len(ours) > 350
    for name in ("MTLComputeCommandEncoder", "MTLCommandEncoder", "MTLBlitCommandEncoder"):
        assert sum(owner == name for owner, _ in ours) >= len(sdk[name]) - 2


def test_the_declared_constants_have_the_values_of_apples_sdk(metal_cpp):
    declared = {e.namespace + member for e in metal_cpp.enumerations.values() for member, _ in e.members}
    values = {name: value for name, value in proof.sdk_constants().items() if name in declared}
    assert len(values) > 700 and {"MTLBarrierScopeBuffers", "MTLLanguageVersion3_1"} <= set(values)
    proof.check_constants(NEWEST, values)
    with pytest.raises(Refused, match="MTLLanguageVersion3_1"):
        proof.check_constants(NEWEST, values | {"MTLLanguageVersion3_1": 1})


def test_the_queue_of_a_stream_has_the_same_place_in_every_torch(minor):
    """MPSStream::queue() is inline: its caller reads a member of an object that torch's library made."""
    assert Compiler(minor).layout("at::mps::MPSStream", "ATen/mps/MPSStream.h")["_serialQueue"] == 64


def test_a_missing_tool_is_named_with_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="ld64.lld-22 is missing: apt-get install lld-22"):
        toolchain.tool("ld64.lld-22")


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RuntimeError, match="cannot download the macOS wheel of mlx 0.12.2: is there a network"):
        wheels.system("mlx")
    assert not (tmp_path / "mlx-0.12.2").exists()
