"""A driver of a GPU that is not there: Triton compiles for it to cubins, which are kept, and nothing is launched.

Source of what a driver has to say: triton 3.9, python/triton/backends/nvidia/driver.py.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver

DUMPER = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a block may take


@dataclass(frozen=True)
class Kernel:
    """A kernel as the GPU would load it."""

    name: str
    cubin: bytes
    shared: int  # bytes of a block's memory

    def usage(self) -> dict[str, int]:
        """What it takes: REG, STACK and LOCAL, in registers of a thread and bytes."""
        said = self._dumped("-res-usage")
        return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}

    @property
    def arch(self) -> int:
        """The architecture that it was compiled for, 90 for sm_90a too."""
        return int(re.search(r"\.sm_(\d+)a?\.", self._dumped("-lelf"))[1])

    def _dumped(self, flag: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            words = [str(DUMPER), flag, file.name]
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Offline(CudaDriver):
    """The driver of one architecture, 80 or 90.

    Args:
        device: its number; Triton keeps what it has compiled by device.
    """

    def __init__(self, arch: int, device: int) -> None:
        self.arch = arch
        self.device = device
        self.kernels: dict[bytes, Kernel] = {}
        self.utils = SimpleNamespace(
            load_binary=self.load,
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": SHARED[arch]},
        )

    def load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Keep a kernel: module, function, registers, spills and threads of a block, as far as Triton needs them."""
        self.kernels[cubin] = Kernel(name, cubin, shared)
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What launches a kernel: nothing."""
        return lambda *arguments, **more: None

    def get_current_target(self) -> GPUTarget:
        """The architecture."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """Its number."""
        return self.device

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0


def prepare_inductor(arch: int) -> None:
    """Give torch.compile its own compiler back, in this process and for a GPU of this architecture."""
    from torch._C._dynamo import guards
    from torch._inductor import config

    from molmo_ds.testing.twin import kernels, torch_cuda

    torch_cuda.PROPERTIES |= {"major": arch // 10, "minor": arch % 10}
    torch.compile = kernels.torch_compile
    config.compile_threads = 1
    config.use_static_triton_launcher = False  # it is C++ that a CPU build lacks
    config.force_disable_caches = True  # they do not tell one made-up GPU from another
    guards._empty_strided_cuda = empty


def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What the code that inductor writes calls for memory."""
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")
