"""The CUDA C++ kernels: `python -m molmo_ds.ops.cuda_library` compiles them with nvcc, and the ops load the library."""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).parent / "csrc"
LIBRARY = SOURCE / "build" / "libmolmo_ds.so"
_BUILT = LIBRARY.is_file()
TARGETS = ("arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_80,code=compute_80")


def build(library: Path = LIBRARY) -> Path:
    """Compile csrc/*.cu for sm_80 and sm_90a (other GPUs: from PTX) into `library`; needs nvcc but no GPU."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise ValueError("nvcc is not on the PATH; install the CUDA toolkit or go on with the Triton kernels.")
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [nvcc, "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", "--threads", "0"]
    command += [x for target in TARGETS for x in ("-gencode", target)]
    subprocess.run([*command, "-o", library, *sorted(SOURCE.glob("*.cu"))], check=True)
    return library


@functools.cache
def load(library: Path = LIBRARY) -> ctypes.CDLL | None:
    """The library with its signatures, or None where it was not built; needs no GPU."""
    if not library.is_file():
        return None
    loaded = ctypes.CDLL(str(library))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    sizes = [ctypes.c_int64, number, number, number, number, pointer]
    loaded.molmo_pool_patches.argtypes = [pointer] * 5 + sizes
    loaded.molmo_pool_patches_backward.argtypes = [pointer] * 8 + sizes
    return loaded


def pool_patches(q: Tensor, k: Tensor, v: Tensor, windows: Tensor | None, library: Path = LIBRARY) -> Tensor:
    """ops.pool_patches of contiguous tensors; windows None = nothing is left out."""
    out = torch.empty_like(q)
    _check(load(library).molmo_pool_patches(*_pointers(q, k, v, windows, out), *_sizes(q, k)))
    return out


def pool_patches_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, windows: Tensor | None, library: Path = LIBRARY
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    out = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _check(load(library).molmo_pool_patches_backward(*_pointers(grad, q, k, v, windows, *out), *_sizes(q, k)))
    return out


def knows(q: Tensor, k: Tensor) -> bool:
    """Whether the kernels were there when this process began and are made for this type and shape."""
    width = q.shape[-1]
    typed = q.dtype in (torch.float32, torch.bfloat16) and q.dtype == k.dtype
    return typed and k.shape[1] in (4, 9) and width * q.element_size() % 16 == 0 and width <= 128 and _BUILT


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]


def _sizes(q: Tensor, k: Tensor) -> tuple:
    stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else None
    return len(q), q.shape[1], q.shape[2], k.shape[1], int(q.dtype == torch.bfloat16), stream


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the CUDA kernel of pool_patches failed with code {code}")


if __name__ == "__main__":
    print(build())
