"""The twin of a GPU: a device "cuda" whose memory is the host's, to run what is written for GPUs where there is none.

Whatever asks `is_cuda`, `device.type` or `torch.cuda.is_available()` takes its GPU branch, here, in DeepSpeed and in
Accelerate, on real numbers: every operator runs PyTorch's CPU kernel. Triton kernels run by TRITON_INTERPRET=1, NCCL is
gloo under NCCL's rules. New memory holds NaN. It cannot show what streams race for, NCCL's deadlocks, what CUDA rounds,
or how long anything takes.

    python -m molmo_ds.testing.twin SCRIPT.py ...      a script on the twin
    python -m molmo_ds.testing.twin -m MODULE ...      a module, also under torchrun

`install` must run before torch is imported, since torch asks once whether there is CUDA; nothing here imports torch
before. A process that runs a backward pass on the twin cannot fork afterwards, as with a GPU.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

DEVICES = "MOLMO_DS_TWIN_DEVICES"  # how many GPUs there are; 2


def install() -> None:
    """Make this process believe in its GPUs; ValueError where there is no g++, AssertionError after `import torch`."""
    import ctypes

    from molmo_ds.testing.twin import build

    assert "torch" not in sys.modules, "the twin must be installed before torch is imported"
    os.environ.setdefault("TRITON_INTERPRET", "1")
    path = str(build.library())
    with without_stderr():  # torch warns that NCCL's collectives are replaced
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    library.twin_start(int(os.environ.get(DEVICES, "2")))
    for name in ("waits", "bytes_held", "bytes_peak", "overwritten"):
        getattr(library, f"twin_{name}").restype = ctypes.c_long

    from molmo_ds.testing.twin import kernels, nccl, torch_cuda

    torch_cuda.install(library)
    kernels.install()
    nccl.install()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what C++ writes to stderr inside the block."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
