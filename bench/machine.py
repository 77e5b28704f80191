"""Where and with what a benchmark ran: written into every result."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch


def processor() -> str:
    """The CPU's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    if not names and sys.platform == "darwin":
        names = [subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True).stdout.strip()]
    return names[0] if names else platform.processor()


def facts() -> dict:
    """Processor, vector level, threads, torch and date."""
    return dict(machine=processor(), threads=torch.get_num_threads(), torch=torch.__version__,
                date=str(datetime.date.today()), flags=torch.backends.cpu.get_cpu_capability())


def command() -> str:
    """This process's command line, as to be typed in the repository's folder, with the kernels asked for."""
    script = Path(sys.argv[0])
    shown = f"{script.parent.name}/{script.name}" if script.parent.name == "bench" else script.name
    kernels = f"INT4KV_CPU={os.environ['INT4KV_CPU']} " if os.environ.get("INT4KV_CPU") else ""
    return kernels + shlex.join(["python", shown, *sys.argv[1:]])


def versions() -> dict:
    """Versions of what takes part, None where it is not installed."""
    found = {}
    for name in ("int4kv", "transformers", "optimum-quanto", "hqq"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def about(device: str) -> dict:
    """facts(), the device by name, versions, how threads are bound, and the command."""
    named = {"cuda": torch.cuda.get_device_name, "mps": processor}.get(device, processor)()
    more = dict(device_name=named, cores=os.cpu_count(), python=platform.python_version(), proc_bind=os.environ.get("OMP_PROC_BIND"),
                versions=versions(), command=command())
    return facts() | more | ({"cuda": torch.version.cuda} if device == "cuda" else {})
