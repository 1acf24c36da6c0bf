"""Crops of bytes to normalised patch vectors, on the device.

Shapes: N crops of H x W pixels, P patches per crop, p patch side.
"""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.crops import reference

dispatch.register("normalise_patches", "torch", reference.normalise_patches)
if dispatch.HAS_TRITON:
    from molmo_ds.ops.crops import triton

    dispatch.register("normalise_patches", "triton", triton.normalise_patches, triton.usable)


def normalise_patches(
    images: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    patch_size: int,
) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, P, p * p * 3]: (byte / 255 - mean) / std, columns (row, column, channel).

    Patches run row by row; H and W are multiples of patch_size (ValueError otherwise). No gradient.
    """
    return dispatch.call("normalise_patches", images, mean, std, patch_size)
