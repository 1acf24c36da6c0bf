"""This machine's CPU by name, and the folder in which what was measured or compiled for it is kept."""

import hashlib
import os
import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """The CPU as the kernel names it, with the vector instructions that PyTorch uses on it."""
    wanted = ("model name", "cpu family", "model", "vendor_id", "CPU implementer", "CPU part")
    lines = [f"{name} {value}" for name, value in _first_cpu() if name in wanted]
    named = ", ".join(lines) or platform.processor()
    return f"{platform.machine()}, {named}, {torch.backends.cpu.get_cpu_capability()}"


def instructions() -> str:
    """The instructions that the kernel names, of which a virtual machine may have fewer than another of its name."""
    return " ".join(value for name, value in _first_cpu() if name in ("flags", "Features"))


def _first_cpu() -> list[tuple[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    lines = text.split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def kept(kind: str, ending: str, *more: str) -> Path:
    """CACHE/molmo_ds/KIND-HASH.ENDING; HASH names the CPU, the version of PyTorch and `more`.

    CACHE is $XDG_CACHE_HOME or ~/.cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = " ".join((cpu_name(), torch.__version__, *more))
    name = hashlib.sha256(named.encode()).hexdigest()[:12]
    return cache / "molmo_ds" / f"{kind}-{name}.{ending}"
