"""The command line: int4kv demo, eval, generate, info, selftest, serve."""

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .evaluation.command import evaluate_recipes

app = typer.Typer(help="A 4-bit KV cache for PyTorch and Hugging Face models.", no_args_is_help=True, add_completion=False)
console = Console()
errors = Console(stderr=True)
app.command("eval")(evaluate_recipes)


class CacheKind(str, Enum):
    int4 = "int4"
    fp = "fp"


def pick_device(name: str) -> str:
    """'auto' -> the best device that int4kv has kernels for; others are taken at their word when torch has them."""
    import torch

    from . import ops

    if name == "auto":
        available = {"mps": torch.backends.mps.is_available, "cuda": torch.cuda.is_available, "cpu": lambda: True}
        return next(device for device in ops.backends() if available[device]())
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device is {name!r}, which torch cannot use here ({str(error).splitlines()[0]})")
    return name


def fail(message: str):
    errors.print(f"[red]error:[/red] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


@app.command()
def info():
    """Backend, torch, device and build of this installation."""
    import platform

    import torch
    import transformers

    from . import __version__, ops

    built = ops.build_info()
    table = Table("", "", show_header=False, box=None)
    for name, value in (
        ("int4kv", __version__), ("kernels", ", ".join(ops.backends())), ("device", _device_facts(pick_device("auto"))),
        ("torch", f"{torch.__version__} (built against {built['torch']})"), ("transformers", transformers.__version__),
        ("threads", f"{torch.get_num_threads()} (OpenMP {'on' if built['openmp'] else 'off'})"),
        ("compiler", built["compiler"]), ("format", str(built["format_version"])),
        ("machine", f"{platform.machine()}, {platform.platform()}, Python {platform.python_version()}"),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    console.print(table)


def _device_facts(device: str) -> str:
    """'cpu', or what the GPU is, how many cores it has and which kernels were built for it now."""
    import torch

    from . import ops

    if device.startswith("mps"):
        chip = f"{torch.backends.mps.get_name()}, {torch.backends.mps.get_core_count()} cores"
    elif device.startswith("cuda"):
        chip = f"{torch.cuda.get_device_name(device)}, {torch.cuda.get_device_properties(device).multi_processor_count} multiprocessors"
    else:
        return device
    origin, *kernels = ops.prepare(device, list(range(32, 257, 32)))
    return f"{device}: {chip}; {len(kernels)} kernels built from {origin}"


@app.command()
def selftest(device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda, ...")] = "auto"):
    """Every kernel against the reference on this device, in about a minute: a table to paste into an issue."""
    import platform

    import torch

    from . import __version__
    from .selftest import run

    where = pick_device(device)
    title = f"int4kv {__version__}, torch {torch.__version__}, {platform.platform()}\n{_device_facts(where)}"
    table = Table("kernel", "cases", "largest error", "accepted", "", title=title, title_justify="left")
    with errors.status("") as status:
        findings = list(run(where, lambda text: status.update(text)))
    for f in findings:
        table.add_row(f.kernel, str(f.cases), f.describe_error(), f.describe_limit(), "[green]ok[/green]" if f.ok else "[red]WRONG[/red]")
    console.print(table)
    if not all(f.ok for f in findings):
        fail("a kernel is wrong on this device: please paste the table into an issue")


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A folder, a hub id, or a bundled model: tiny-qwen2, tiny-gemma3.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    cache: Annotated[CacheKind, typer.Option(help="int4 or fp (transformers' own).")] = CacheKind.int4,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda, ...")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    prompt_cache: Annotated[Path | None, typer.Option(help="The prompt's tokens, read before; made if it is not there.")] = None,
):
    """Continue a prompt, streaming the text; the last line tells speed and cache bytes."""
    import torch

    from .naming import as_argument
    from .patching import patch
    from .prompt_cache import load_or_read
    from .streaming import load_or_fail, stream

    if not prompt:
        fail("--prompt is empty; accepted: at least one character")
    if prompt_cache is not None and cache is not CacheKind.int4:
        fail(f"--prompt-cache is given with --cache {cache.value}; accepted: --cache int4")
    _note(f"loading {model}")  # transformers shows its own progress bar
    network, tokenizer = load_or_fail(model, pick_device(device), fail)
    if cache is CacheKind.int4:
        try:
            patch(network)
        except ValueError as error:
            fail(str(error))
    torch.manual_seed(seed)
    options = dict(do_sample=True, temperature=temperature) if temperature else dict(do_sample=False)
    if prompt_cache is not None:
        options |= as_argument(load_or_read(network, tokenizer, prompt, prompt_cache, _note, fail))
    closing = stream(network, tokenizer, prompt, console, errors, max_new_tokens=max_new_tokens, **options)
    console.print(closing, style="dim", highlight=False, soft_wrap=True)


def _note(text: str) -> None:
    errors.print(text, style="dim", highlight=False, soft_wrap=True)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="A folder, a hub id, or a bundled model: tiny-qwen2, tiny-gemma3.")],
    config: Annotated[Path | None, typer.Option(help="A folder with int4kv.json, as int4kv.calibrate(...).save writes it.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    requests: Annotated[int, typer.Option(min=1, help="Requests that run at once; others wait.")] = 64,
    page_size: Annotated[int, typer.Option(min=4, help="Tokens in a page; requests share whole ones.")] = 32,
    memory: Annotated[float, typer.Option(min=0.0, help="GiB for the cache of all requests.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda, ...")] = "auto",
):
    """Serve a patched model to OpenAI clients: transformers' own server and continuous batching, over int4 pages."""
    try:
        from . import serving
    except ImportError as error:
        fail(f"serve needs more packages: pip install 'int4kv[serving]' ({error})")
    from .config import Int4KVConfig
    from .patching import patch
    from .streaming import load_or_fail

    network, tokenizer = load_or_fail(model, pick_device(device), fail)
    try:
        patch(network, Int4KVConfig.load(config) if config else None)
    except ValueError as error:
        fail(str(error))
    batching = serving.batching_config(network, int(memory * 2**30), requests, page_size)
    serving.serve(model, network, tokenizer, batching, host, port)


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda, ...")] = "auto",
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("demo.png"),
):
    """Both bundled models with the fp cache and the int4 cache: text, bytes, speed and quality side by side."""
    from transformers.utils.logging import disable_progress_bar

    from . import demo as demonstration
    from .models import NAMES

    disable_progress_bar()

    if not plot.parent.is_dir():
        fail(f"--plot is {str(plot)!r}; accepted: a file in a folder that exists")
    begin, findings, where = time.perf_counter(), [], pick_device(device)
    for name in NAMES:
        with errors.status("") as status:
            findings.append(demonstration.run(name, lambda text: status.update(text), where))
        show(findings[-1])
    demonstration.plot(findings, plot)
    console.print(f"Plot: {plot}   ({time.perf_counter() - begin:.0f} s on {where})", highlight=False)


def show(found) -> None:
    """Print one model's findings."""
    from .demo import PROMPT

    table = Table("", "fp cache", "int4 cache", "", title=f"\n{found.model}", title_justify="left", title_style="bold")
    for t in found.timings:
        table.add_row(f"cache bytes, {t.context // 1024}k", f"{t.fp16_bytes:,}", f"{t.int4_bytes:,}", f"{t.fp16_bytes / t.int4_bytes:.2f}x smaller")
    for t in found.timings:
        table.add_row(f"ms/token, {t.context // 1024}k", _ms(t.fp_ms), _ms(t.int4_ms), f"{t.fp_ms[0] / t.int4_ms[0]:.2f}x as fast")
    q = found.int4
    table.add_row("perplexity", f"{q.fp_perplexity:.3f}", f"{q.perplexity:.3f}", f"{100 * q.change:+.2f} %")
    table.add_row("mean KL, nats", "0", f"{q.kl:.5f}", "")
    table.add_row("plain int4", f"{q.fp_perplexity:.3f}", f"{found.plain.perplexity:.1f}", f"{found.plain.perplexity / q.fp_perplexity:.4g}x")
    console.print(table)
    console.print(LEGEND.format(tokens=q.tokens, threads=found.threads), style="dim", highlight=False)
    for cache, text in (("fp", found.fp_text), ("int4", found.int4_text)):
        console.print(f"\n[bold]{cache} cache:[/bold] {escape(PROMPT + text)}", highlight=False, emoji=False)


LEGEND = """cache bytes: every tensor held; fp: keys and values of as many tokens in fp16.
ms/token: a decode step of the whole model in float32, {threads} threads, the caches
taking turns, median (lowest-highest); fp: transformers' DynamicCache.
perplexity, KL: {tokens} held-out tokens, decoded one at a time.
plain int4: abs-max rounding, no centre, no rotation, no exact newest tokens."""


def _ms(times) -> str:
    median, lowest, highest = times
    return f"{median:.3g} ({lowest:.3g}-{highest:.3g})"


if __name__ == "__main__":
    app()
