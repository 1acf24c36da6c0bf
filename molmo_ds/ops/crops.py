"""Crops of bytes to normalised patch vectors, on the device.

Shapes: N crops of H x W pixels, P patches per crop, p patch side.
"""

import torch
from torch import Tensor

from molmo_ds.ops import dispatch


def normalise_patches(
    images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float], patch_size: int
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, P, p * p * 3]: (byte / 255 - mean) / std, columns (row, column, channel).

    Patches run row by row; H and W are multiples of patch_size (ValueError otherwise). No gradient.
    """
    if images.shape[1] % patch_size or images.shape[2] % patch_size:
        raise ValueError(f"Crops of {tuple(images.shape[1:3])} pixels do not divide into patches of {patch_size}.")
    return dispatch.call("normalise_patches", images, tuple(mean), tuple(std), patch_size)


@torch.library.custom_op("molmo_ds::normalise_patches", mutates_args=())
def _kernel(images: Tensor, mean: list[float], std: list[float], patch_size: int) -> Tensor:
    from molmo_ds.ops import triton_kernels

    out = _kernel_shape(images, mean, std, patch_size)
    rows, columns, width = images.shape[1] // patch_size, images.shape[2] // patch_size, out.shape[2]
    triton_kernels.normalise_patches[(out.shape[0] * out.shape[1],)](
        images.contiguous(), out, rows, columns, *mean, *std, patch_size, 1 << (width - 1).bit_length()
    )
    return out


@_kernel.register_fake
def _kernel_shape(images: Tensor, mean: list[float], std: list[float], patch_size: int) -> Tensor:
    n, height, width, _ = images.shape
    size = (n, (height // patch_size) * (width // patch_size), patch_size * patch_size * 3)
    return images.new_empty(size, dtype=torch.float32)


@dispatch.implements("normalise_patches", "triton", lambda images, *rest: dispatch.on_gpu(images))
def _triton(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], patch_size: int) -> Tensor:
    return _kernel(images, list(mean), list(std), patch_size)


@dispatch.implements("normalise_patches", "torch")
def _torch(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], patch_size: int) -> Tensor:
    n, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.view(n, rows, patch_size, columns, patch_size, channels).transpose(2, 3).float()
    middle, scale = (torch.stack([torch.full((), x, device=images.device) for x in xs]) for xs in (mean, std))
    return ((patches / 255 - middle) / scale).reshape(n, rows * columns, patch_size * patch_size * channels)
