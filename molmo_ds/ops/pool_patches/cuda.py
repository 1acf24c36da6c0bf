"""Pooling attention in CUDA C++ (`pool_patches.cu`), where the library was built and knows type and shape.

Shapes: M windows of W patches, H heads of width d.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.ops import cuda_library, dispatch
from molmo_ds.ops.pool_patches import operator

SOURCE = Path(__file__).with_name("pool_patches.cu")
WINDOWS = (4, 9)  # patches of a window that the kernels are compiled for
WIDEST = 128  # columns of a head


def usable(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> bool:
    """Whether the kernels can take these: by device, type, window and head, and whether they are built here."""
    return q.is_cuda and knows(q, k)


def knows(q: Tensor, k: Tensor) -> bool:
    """Whether the library was there when this process began and is made for this type and shape."""
    width = q.shape[-1]
    typed = q.dtype in (torch.float32, torch.bfloat16) and q.dtype == k.dtype
    sized = k.shape[1] in WINDOWS and width * q.element_size() % 16 == 0 and width <= WIDEST
    return typed and sized and cuda_library.BUILT


def pool_patches(q: Tensor, k: Tensor, v: Tensor, windows: Tensor, masked: bool) -> Tensor:
    """q [M, H, d], k and v [M, W, H, d], windows [M, W] -> [M, H, d]; by another way where these kernels cannot."""
    # asked for by name, but not built or not made for this shape
    if not usable(q, k, v, windows, masked):
        return dispatch.call_after("cuda", "pool_patches", q, k, v, windows, masked)
    return operator.pool(q, k, v, windows, masked, "cuda")


@functools.cache
def kernels(library: Path = cuda_library.LIBRARY) -> ctypes.CDLL:
    """The library's two functions with their signatures; needs no GPU."""
    loaded = cuda_library.load(library)
    pointer = ctypes.c_void_p
    number = ctypes.c_int
    sizes = [ctypes.c_int64, number, number, number, number, pointer]
    loaded.molmo_pool_patches.argtypes = [pointer] * 5 + sizes
    loaded.molmo_pool_patches_backward.argtypes = [pointer] * 8 + sizes
    return loaded


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    library: Path = cuda_library.LIBRARY,
) -> Tensor:
    """`pool_patches` of contiguous tensors."""
    out = torch.empty_like(q)
    pointers = _pointers(q, k, v, windows if masked else None, out)
    _check(kernels(library).molmo_pool_patches(*pointers, *_sizes(q, k)))
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    masked: bool,
    library: Path = cuda_library.LIBRARY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    out = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    pointers = _pointers(grad, q, k, v, windows if masked else None, *out)
    _check(kernels(library).molmo_pool_patches_backward(*pointers, *_sizes(q, k)))
    return out


operator.KERNELS["cuda"] = operator.Kernels(forward, backward)


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]


def _sizes(q: Tensor, k: Tensor) -> tuple:
    stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else None
    windows, heads, width = q.shape
    patches = k.shape[1]
    return windows, heads, width, patches, int(q.dtype == torch.bfloat16), stream


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the CUDA kernel of pool_patches failed with code {code}")
