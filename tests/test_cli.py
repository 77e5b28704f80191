"""The command line as a user meets it: real processes for the outside, in-process runs for the details."""

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from int4kv import cli, demo, models

runner = CliRunner()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "int4kv.cli", *arguments], capture_output=True, text=True, timeout=300)


def test_info_names_backend_torch_and_device():
    done = run("info")
    assert done.returncode == 0
    for fact in ("int4kv", "kernels", "cpu", torch.__version__, "gcc" if "gcc" in done.stdout else "clang", "OpenMP"):
        assert fact in done.stdout


@pytest.mark.parametrize("cache", ["int4", "fp"])
def test_generate_streams_text_and_closes_with_speed_and_bytes(cache):
    done = run("generate", "--model", "tiny-gemma3", "--prompt", "This module defines", "--cache", cache, "--max-new-tokens", "30")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 10 and "Traceback" not in done.stderr
    last = " ".join(done.stdout.split("\n30 tokens")[1].split())
    assert "tokens/s" in last and f"{cache} cache" in last and "bytes" in last


def test_sampling_is_reproducible():
    arguments = ["generate", "--model", "tiny-qwen2", "--prompt", "def ", "--temperature", "0.8", "--max-new-tokens", "12", "--seed", "3"]
    first, second = (runner.invoke(cli.app, arguments).stdout.split("\n12 tokens")[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("arguments, message", [
    (["generate", "--model", "no/such/folder/here", "--prompt", "x"], "--model is 'no/such/folder/here', which could not be loaded"),
    (["generate", "--model", "tiny-qwen2", "--prompt", ""], "--prompt is empty"),
    (["generate", "--model", "tiny-qwen2", "--prompt", "x", "--device", "gpu9"], "--device is 'gpu9', which torch cannot use here"),
    (["generate", "--model", "tiny-qwen2", "--prompt", "x", "--cache", "int3"], "Invalid value for '--cache'"),
    (["demo", "--plot", "no/such/folder/plot.png"], "--plot is 'no/such/folder/plot.png'"),
])
def test_mistakes_are_told_in_one_sentence(arguments, message):
    result = runner.invoke(cli.app, arguments, env={"HF_HUB_OFFLINE": "1", "COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_demo_prints_a_table_and_writes_a_plot(tmp_path, monkeypatch):
    """Small settings; make demo runs the real ones."""
    monkeypatch.setattr(demo, "CONTEXTS", (1024, 2048, 4096))
    monkeypatch.setattr(demo, "measure_quality", short_quality)
    result = runner.invoke(cli.app, ["demo", "--plot", str(tmp_path / "plot.png")])
    assert result.exit_code == 0, result.output
    for name in models.NAMES:
        assert name in result.stdout
    for row in ("cache bytes, 4k", "ms/token, 1k", "perplexity", "mean KL, nats", "plain int4"):
        assert result.stdout.count(row) >= 2
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


measure = demo.measure_quality


def short_quality(model, tokenizer):
    return measure(model, tokenizer, length=64, count=1)
