"""How the kernels get into the library: as source, or compiled where there is Apple's compiler. Here a stand-in for xcrun."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc" / "gpu"))
import embed_metal  # noqa: E402

pytestmark = pytest.mark.cpu_only  # it is about the build


def written(tmp_path):
    source = embed_metal.source()
    embed_metal.write(tmp_path / "out" / "int4kv_metal_source.h", embed_metal.header(source, embed_metal.library(source)))
    return (tmp_path / "out" / "int4kv_metal_source.h").read_text()


def embedded_source(header):
    return "".join(re.findall(r'R"METAL\((.*?)\)METAL"', header, re.DOTALL))


@pytest.fixture
def xcrun(tmp_path, monkeypatch):
    """A Mac with a Metal compiler that writes `library` and notes its arguments; the folder it lives in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "xcrun"
    script.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\nfor last; do :; done\n'
                      '[ "$last" = --version ] || printf library > "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "platform", "darwin")
    return folder


def test_without_a_metal_compiler_the_source_is_carried_alone(tmp_path):
    header = written(tmp_path)
    assert embedded_source(header) == embed_metal.source() and "kMetalLibraryBytes = 0;" in header


def test_the_source_is_one_ascii_file_without_quoted_includes():
    source = embed_metal.source()
    assert source.isascii() and '#include "' not in source and source.count("#include <metal_stdlib>") == 1


def test_with_one_the_library_is_carried_too(tmp_path, xcrun):
    header = written(tmp_path)
    assert f"{{{','.join(str(b) for b in b'library')}}}" in header and "kMetalLibraryBytes = 7;" in header
    call = (xcrun / "calls").read_text().splitlines()[-1]
    assert call.startswith("-sdk macosx metal -std=metal3.1 -mmacosx-version-min=14.0 -fno-fast-math")


def test_a_compiler_that_fails_fails_the_build(tmp_path, xcrun):
    script = xcrun / "xcrun"
    script.write_text('#!/bin/sh\nfor last; do :; done\n[ "$last" = --version ]\n')
    with pytest.raises(subprocess.CalledProcessError):
        written(tmp_path)


def test_an_unchanged_header_is_left_alone(tmp_path):
    written(tmp_path)
    header = tmp_path / "out" / "int4kv_metal_source.h"
    before = header.stat().st_mtime_ns
    written(tmp_path)
    assert header.stat().st_mtime_ns == before
