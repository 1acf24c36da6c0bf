"""torch.compile on the twin through to machine code: ptxas makes cubins, and launching them is only counted.

Triton's wheel brings ptxas and cuobjdump, so no GPU and no CUDA toolkit is asked for. What a launch would have written
is not there: after `install` only shapes, graphs and kernels mean something, no number does.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molmo_ds.testing.twin import kernels, torch_cuda

CAPABILITIES = {80: (8, 0, 108, 166912), 90: (9, 0, 132, 232448)}  # A100, H100
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Cubin:
    """One kernel as ptxas made it."""

    name: str
    registers: int
    stack: int  # bytes of a thread: what its registers do not hold
    shared: int  # bytes of a block


made: list[Cubin] = []
launches: Counter[str] = Counter()


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as cuobjdump reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = USAGE.search(said.stdout)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of a kernel's registers: {said.stdout}")
    registers, stack, _, local = map(int, found.groups())
    return registers, stack + local


def install(architecture: int) -> None:
    """Compile for sm_80 or sm_90 from now on; the twin must be there, and TRITON_INTERPRET=0 from the start."""
    import triton
    from torch._inductor import config
    from triton.backends.nvidia import driver

    major, minor, processors, shared = CAPABILITIES[architecture]
    facts = {
        "max_shared_mem": shared,
        "max_num_regs": 65536,
        "multiprocessor_count": processors,
        "warpSize": 32,
        "sm_clock_rate": 1_980_000,
        "mem_clock_rate": 2_619_000,
        "mem_bus_width": 5120,
    }

    class Utils:
        """What Triton asks of CUDA's driver."""

        def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple:
            """Keep what ptxas made; (module, function, registers, spilt words, threads)."""
            registers, stack = usage(cubin)
            made.append(Cubin(name, registers, stack, shared))
            return 1, name, registers, stack // 4, 1024

        def get_device_properties(self, device: int = 0) -> dict[str, int]:
            """Of the GPU that is not there."""
            return facts

        def get_device_capability(self, device: int = 0) -> tuple[int, int]:
            """Its architecture."""
            return major, minor

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: 0

    class Launcher:
        """Counts in place of a launch."""

        def __init__(self, source: Any, metadata: Any) -> None:
            self.name = metadata["name"] if isinstance(metadata, dict) else metadata.name

        def __call__(self, *_: Any, **__: Any) -> None:
            launches[self.name] += 1

    driver.CudaUtils = Utils
    driver.CudaLauncher = Launcher
    triton.runtime.driver.set_active(driver.CudaDriver())
    torch_cuda.PROPERTIES.update(major=major, minor=minor, multi_processor_count=processors)
    for name in ("use_static_cuda_launcher", "use_static_triton_launcher"):
        if hasattr(config, name):
            setattr(config, name, False)
    config.compile_threads = 1
    torch._C._dynamo.guards._empty_strided_cuda = _empty
    torch.compile = kernels.torch_compile


def _empty(size: tuple, stride: tuple, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")
