"""The command line as a user meets it: real processes for the outside, in-process runs for the details."""

import subprocess
import sys

import pytest
import torch
from devices import DEVICE
from typer.testing import CliRunner

from int4kv import cli, demo, models, selftest

runner = CliRunner()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "int4kv.cli", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.cpu_only
def test_info_names_backend_torch_and_device():
    done = run("info")
    assert done.returncode == 0
    for fact in ("int4kv", "kernels", "cpu", torch.__version__, "gcc" if "gcc" in done.stdout else "clang", "OpenMP"):
        assert fact in done.stdout


def generate(*options, model="tiny-gemma3", prompt="This module defines"):
    return ["generate", "--model", model, "--prompt", prompt, "--device", DEVICE.type, *options]


def check_streamed(stdout, cache):
    assert len(stdout.split()) > 10
    last = " ".join(stdout.split("\n30 tokens")[1].split())
    assert "tokens/s" in last and f"{cache} cache" in last and "bytes" in last


@pytest.mark.cpu_only
@pytest.mark.parametrize("cache", ["int4", "fp"])
def test_generate_streams_text_and_closes_with_speed_and_bytes(cache):
    done = run(*generate("--cache", cache, "--max-new-tokens", "30"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    check_streamed(done.stdout, cache)


@pytest.mark.gpu_only
@pytest.mark.parametrize("cache", ["int4", "fp"])
def test_generate_on_the_device_that_was_asked_for(cache):
    result = runner.invoke(cli.app, generate("--cache", cache, "--max-new-tokens", "30"))
    assert result.exit_code == 0, result.output
    check_streamed(result.stdout, cache)


def test_sampling_is_reproducible():
    options = ("--temperature", "0.8", "--max-new-tokens", "12", "--seed", "3")
    results = [runner.invoke(cli.app, generate(*options, model="tiny-qwen2", prompt="def ")) for _ in range(2)]
    assert [r.exit_code for r in results] == [0, 0]
    first, second = (r.stdout.split("\n12 tokens")[0] for r in results)
    assert first == second


def test_a_prompt_cache_is_saved_then_reused_for_the_same_text(tmp_path):
    """The same prompt, then a longer one that begins with it; without the file the text is the same."""
    def text(result):
        assert result.exit_code == 0, result.output
        return result.stdout.split("\n12 tokens")[0]

    def started(*options, prompt="def open_file(name):"):
        return runner.invoke(cli.app, generate("--max-new-tokens", "12", *options, model="tiny-qwen2", prompt=prompt), env={"COLUMNS": "200"})

    cached = ("--prompt-cache", str(tmp_path / "prompt"))
    first, second = started(*cached), started(*cached)
    tokens = int(first.stderr.split(" of ")[1].split()[0])
    assert f"saved {tokens - 1} of {tokens} prompt tokens to" in first.stderr
    assert f"reused {tokens - 1} of {tokens} prompt tokens from" in second.stderr
    assert text(first) == text(second)
    saved = (tmp_path / "prompt").read_bytes()
    longer = started(*cached, prompt="def open_file(name):\n    return")
    assert longer.exit_code == 0 and f"reused {tokens - 1} of" in longer.stderr
    assert (tmp_path / "prompt").read_bytes() == saved


@pytest.mark.cpu_only
@pytest.mark.parametrize("options, message", [
    (dict(prompt="class File(io.RawIOBase, name): pass"), "holds other tokens than the first"),
    (dict(prompt="def"), "--prompt has 1 token; accepted with --prompt-cache: 2"), (dict(model="tiny-gemma3"), "was saved with"),
    (dict(damage=True), "prompt cannot be read"), (dict(file="no/folder/prompt"), "could not be written"),
    (dict(cache="fp"), "--prompt-cache is given with --cache fp; accepted: --cache int4")])
def test_prompt_caches_that_do_not_fit_are_told_in_one_sentence(tmp_path, options, message):
    file = tmp_path / options.get("file", "prompt")

    def started(model="tiny-qwen2", prompt="def open_file(name):", cache="int4", **_):
        options = ("--max-new-tokens", "2", "--cache", cache, "--prompt-cache", str(file))
        return runner.invoke(cli.app, generate(*options, model=model, prompt=prompt), env={"COLUMNS": "200"})

    if "file" not in options:
        assert started().exit_code == 0
        file.write_bytes(file.read_bytes()[: -1 if options.get("damage") else None])
    before = file.read_bytes() if file.exists() else None
    result = started(**options)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr, result.output
    assert before is None or file.read_bytes() == before
    if message[0] != "-" and before is not None:
        assert "To make it anew, delete the file, or name another" in result.stderr


def test_selftest_finds_every_kernel_right():
    result = runner.invoke(cli.app, ["selftest", "--device", DEVICE.type], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" ok ") >= 8 and "WRONG" not in result.stdout


def test_selftest_tells_a_wrong_kernel(monkeypatch):
    findings = [selftest.Finding("merge", "error", 1, {1e-5: 0.1})]
    monkeypatch.setattr(selftest, "run", lambda device, tell: findings)
    result = runner.invoke(cli.app, ["selftest", "--device", DEVICE.type], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and "WRONG" in result.stdout
    assert "a kernel is wrong on this device" in result.stderr


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
    monkeypatch.setattr(demo, "STEPS", 3)
    monkeypatch.setattr(demo, "measure_quality", short_quality)
    result = runner.invoke(cli.app, ["demo", "--device", DEVICE.type, "--plot", str(tmp_path / "plot.png")])
    assert result.exit_code == 0, result.output
    for name in models.NAMES:
        assert name in result.stdout
    for row in ("cache bytes, 4k", "ms/token, 1k", "perplexity", "mean KL, nats", "plain int4"):
        assert result.stdout.count(row) >= 2
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


measure = demo.measure_quality


def short_quality(model, tokenizer):
    return measure(model, tokenizer, length=64, count=1)
