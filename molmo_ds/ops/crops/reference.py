"""Crops of bytes to normalised patch vectors in plain PyTorch.

Shapes: N crops of H x W pixels, P patches per crop, p patch side.
"""

import torch
from torch import Tensor


def normalise_patches(
    images: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    patch_size: int,
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, P, p * p * 3]: (byte / 255 - mean) / std, columns (row, column, channel)."""
    rows, columns = patch_grid(images, patch_size)
    n, _, _, channels = images.shape
    patches = images.view(n, rows, patch_size, columns, patch_size, channels).transpose(2, 3)
    # bytes are moved while they are bytes, and the statistics repeated: every pass is over whole patches
    patches = patches.reshape(n, rows * columns, patch_size * patch_size * channels)
    middle = _filled(mean, images.device).repeat(patch_size * patch_size)
    scale = _filled(std, images.device).repeat(patch_size * patch_size)
    return patches.float().div_(255).sub_(middle).div_(scale)


def patch_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in a crop; ValueError where its pixels do not divide into patches."""
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"Crops of {tuple(images.shape[1:3])} pixels do not divide into patches of {patch_size}."
        )
    return height // patch_size, width // patch_size


def _filled(values: tuple[float, ...], device: torch.device) -> Tensor:
    # filled on the device: a copy of numbers from the CPU would wait
    return torch.stack([torch.full((), value, device=device) for value in values])
