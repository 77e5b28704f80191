"""Where and with what a benchmark ran: written into every result."""

import datetime
import platform
from pathlib import Path

import torch


def facts() -> dict:
    """Processor, vector level, threads, torch and date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return dict(machine=names[0] if names else platform.processor(), threads=torch.get_num_threads(), torch=torch.__version__,
                date=str(datetime.date.today()), flags=torch.backends.cpu.get_cpu_capability())
