"""The C++ kernels of all ops for the CPU: compiled into one library at the first use on a machine, then kept.

The first process that needs them compiles `ops/*/*.cpp` with $CXX or g++ for this very CPU (some seconds) into
`CACHE/molmo_ds/kernels-HASH.so`; the ranks beside it wait, later ones find it. HASH names the CPU and its
instructions, the version of PyTorch and the sources. Where there is no compiler, all ops run by PyTorch's own kernels:
right, and slower.
"""

import ctypes
import fcntl
import functools
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from molmo_ds.ops import machine

OPS = Path(__file__).parent
# loops over rows are divided among torch's own threads: the library is linked against no other OpenMP than the one
# that torch has loaded
COMPILE = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp")
COMPILE += ("-std=c++17", "-fPIC", "-c")

PLAIN = (Tensor, torch.nn.Parameter)  # none that is traced, sharded or quantised
POINTER = ctypes.c_void_p
INTEGER = ctypes.c_int64
FLOAT = ctypes.c_float

log = logging.getLogger(__name__)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, compiled first where this machine has none yet; None, told once, where that cannot be done."""
    try:
        library = place()
        if not library.exists():
            _compile_once(library)
        return ctypes.CDLL(str(library))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        log.warning(
            "The C++ kernels for this CPU cannot be compiled or loaded (%s); PyTorch's own are used, which is slower.",
            str(said).strip().splitlines()[0],
        )
        return None


def place() -> Path:
    """Where the library of this machine and these sources lies, or will."""
    texts = (path.read_text() for path in sources())
    return machine.kept("kernels", "so", machine.instructions(), *COMPILE, *texts)


def sources() -> list[Path]:
    """Headers and sources, in one order."""
    return sorted([*OPS.glob("*.h"), *OPS.glob("*/*.cpp")])


def takes(*tensors: Tensor) -> bool:
    """Whether kernels can take these: float32 on a CPU, and a library there.

    Not where torch compiles, nor in a dispatch mode, as what counts, records or fakes operations: it would see nothing.
    """
    for x in tensors:
        if type(x) not in PLAIN or not x.is_cpu or x.dtype != torch.float32:
            return False
    return runs()


def runs() -> bool:
    """Whether kernels run at all here and now."""
    seen = torch.compiler.is_compiling() or _len_torch_dispatch_stack()
    return not seen and load() is not None


class Kernel:
    """One function of the library, found at its first call; the number of threads is its last argument."""

    def __init__(self, name: str, *arguments: type) -> None:
        self.name = name
        self.arguments = (*arguments, INTEGER)
        self.found: Any = None

    def __call__(self, *values: int | float | None) -> None:
        """Run it with `data_ptr()` of contiguous tensors; the caller has checked types and sizes."""
        if self.found is None:
            self.found = load()[self.name]
            self.found.argtypes = self.arguments
            self.found.restype = None
        self.found(*values, torch.get_num_threads())


def _compile_once(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            log.info("Compiling the C++ kernels for this CPU, once: %s.", library)
            build(library)


def build(library: Path) -> None:
    """Compile and link; ValueError without a compiler, CalledProcessError with its words where it fails."""
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(compiler[0]) is None:
        raise ValueError("there is no g++, nor another compiler in $CXX")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = []
        for source in sources():
            if source.suffix != ".cpp":
                continue
            made = Path(folder) / f"{source.stem}.o"
            _run([*compiler, *COMPILE, f"-I{OPS}", str(source), "-o", str(made)])
            objects.append(str(made))
        linked = Path(folder) / library.name
        _run([*compiler, "-shared", *objects, "-o", str(linked)])
        linked.rename(library)  # whole or not at all


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
