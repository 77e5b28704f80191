"""Resident memory: processes of their own fill a cache and say how far their peak rises."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from cached_layers import chunk, fill, layer

from int4kv import ring

pytestmark = pytest.mark.cpu_only

# glibc gives back what is freed at once: without, up to 100 MB of freed activations stay, at one run and not at the next.
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536")
SCRIPT = Path(__file__).with_name("peak_memory.py")


def rise(*what) -> int:
    """Bytes by which the resident peak of a child process rises."""
    done = subprocess.run([sys.executable, SCRIPT, *map(str, what)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("what, tokens, share", [("model", 2048, 0.6), ("grow", 2048, 0.4), ("grow", 10240, 0.3)])
def test_the_peak_is_below_the_fp_caches(what, tokens, share):
    """Prompt, activations, growth and all, against DynamicCache in float32."""
    ours, theirs = rise(what, "int4kv", tokens), rise(what, "dynamic", tokens)
    assert ours < share * theirs, f"{ours / 1e6:.1f} MB, DynamicCache {theirs / 1e6:.1f} MB"


def test_a_chunk_attends_to_a_packed_past_in_bounded_memory():
    """256 queries, 4 heads, 16384 keys: all scores would be 67 MB, keys and values in fp16 17 MB."""
    assert rise("chunk", "int4kv", 16384) < 8e6


def test_growing_lets_each_old_buffer_go_before_the_next_is_made(monkeypatch):
    target = layer()
    k, v = chunk(257)
    fill(target, k, v, [256])
    old, held = [weakref.ref(t) for t in target.codes.tensors], []
    make = ring.new_rows
    monkeypatch.setattr(ring, "new_rows", lambda *shape: held.append(sum(t() is not None for t in old)) or make(*shape))
    target.update(k[:, :, 256:], v[:, :, 256:])
    assert target.codes.capacity == 512 and held == [4, 3, 2, 1]
