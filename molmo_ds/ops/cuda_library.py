"""The CUDA C++ kernels of all ops: `python -m molmo_ds.ops.cuda_library` compiles them into one library with nvcc."""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path

OPS = Path(__file__).parent
LIBRARY = OPS / "build" / "libmolmo_ds.so"
BUILT = LIBRARY.is_file()  # when this process began
TARGETS = (
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
)


def build(library: Path = LIBRARY) -> Path:
    """Compile every op's *.cu for sm_80 and sm_90a (other GPUs: from PTX) into `library`; needs nvcc but no GPU."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise ValueError(
            "nvcc is not on the PATH; install the CUDA toolkit or go on with the Triton kernels."
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [
        nvcc,
        "-O3",
        "-std=c++17",
        "-shared",
        "-Xcompiler",
        "-fPIC",
        "-cudart",
        "static",
        "--threads",
        "0",
    ]
    command += [x for target in TARGETS for x in ("-gencode", target)]
    subprocess.run([*command, "-o", library, *sorted(OPS.glob("*/*.cu"))], check=True)
    return library


@functools.cache
def load(library: Path = LIBRARY) -> ctypes.CDLL | None:
    """The library, or None where it was not built; needs no GPU."""
    return ctypes.CDLL(str(library)) if library.is_file() else None


if __name__ == "__main__":
    print(build())
