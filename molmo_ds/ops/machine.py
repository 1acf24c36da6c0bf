"""This machine's CPU by name, and the folder in which what was measured or compiled for it is kept."""

import hashlib
import os
import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """The CPU as the kernel names it, with the vector instructions that PyTorch uses on it."""
    wanted = ("model name", "cpu family", "model", "vendor_id", "CPU implementer", "CPU part")
    lines = []
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            lines.append(f"{name.strip()} {value.strip()}")
    named = ", ".join(lines) or platform.processor()
    return f"{platform.machine()}, {named}, {torch.backends.cpu.get_cpu_capability()}"


def kept(kind: str, ending: str, *more: str) -> Path:
    """CACHE/molmo_ds/KIND-HASH.ENDING; HASH names the CPU, the version of PyTorch and `more`.

    CACHE is $XDG_CACHE_HOME or ~/.cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = " ".join((cpu_name(), torch.__version__, *more))
    name = hashlib.sha256(named.encode()).hexdigest()[:12]
    return cache / "molmo_ds" / f"{kind}-{name}.{ending}"
