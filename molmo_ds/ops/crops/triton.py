"""Crops of bytes to normalised patch vectors in one pass over the bytes; bit for bit the reference's result."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.crops.reference import patch_grid


def usable(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], patch_size: int
) -> bool:
    """Whether the kernel can take these: by device and type."""
    return dispatch.on_gpu(images)


def normalise_patches(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], patch_size: int
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, P, p * p * 3]."""
    return _operator(images, list(mean), list(std), patch_size)


@torch.library.custom_op("molmo_ds::normalise_patches", mutates_args=())
def _operator(images: Tensor, mean: list[float], std: list[float], patch_size: int) -> Tensor:
    rows, columns = patch_grid(images, patch_size)
    out = _shape(images, mean, std, patch_size)
    programs = out.shape[0] * out.shape[1]
    block = triton.next_power_of_2(out.shape[2])
    patches_kernel[(programs,)](
        images.contiguous(), out, rows, columns, *mean, *std, patch_size, block
    )
    return out


@_operator.register_fake
def _shape(images: Tensor, mean: list[float], std: list[float], patch_size: int) -> Tensor:
    rows, columns = patch_grid(images, patch_size)
    return images.new_empty(
        (len(images), rows * columns, patch_size * patch_size * 3), dtype=torch.float32
    )


@triton.jit
def patches_kernel(
    images, out, rows, columns, m0, m1, m2, s0, s1, s2, PATCH: tl.constexpr, BLOCK: tl.constexpr
):  # one program per patch
    pid = tl.program_id(0).to(tl.int64)
    crop = pid // (rows * columns)
    patch = pid % (rows * columns)
    y = patch // columns
    x = patch % columns
    k = tl.arange(0, BLOCK)
    inside = k < PATCH * PATCH * 3
    line = k // (PATCH * 3)
    rest = k % (PATCH * 3)
    source = ((crop * rows + y) * PATCH + line) * (columns * PATCH * 3) + x * PATCH * 3 + rest
    value = tl.load(images + source, mask=inside, other=0).to(tl.float32) / 255.0
    channel = k % 3
    mean = tl.where(channel == 0, m0, tl.where(channel == 1, m1, m2))
    std = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    tl.store(out + pid * (PATCH * PATCH * 3) + k, (value - mean) / std, mask=inside)
