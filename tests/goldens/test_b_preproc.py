"""Decoding, tilings, layouts, masks and pixels against the reference's, every case that B_preproc lists."""

import functools
import hashlib

import numpy as np
import pytest
import torch
from golden_files import MISSING, folder, listed, need, read_json
from safetensors.torch import load_file

from molmo_ds.architecture import (
    PIXEL_STATISTICS,
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.data.decode import load_image
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.data.sample.pictures.layout import IM_START, Layout, select_tiling
from molmo_ds.ops.crops import normalise_patches

META = "B_preproc/preproc.json"
RESIZE = {"default": "clip", "siglip": "siglip", "dino": "dinov2", "metaclip": "metaclip"}
KNOWN = {"use_col_tokens", "max_crops", "overlap_margins", "pad_value", "image_padding_mask"}
BYTES = 1.01 / 255  # what the mode of bytes may differ from float32, before normalisation


@functools.cache
def meta() -> dict:
    return read_json(META)


@functools.cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(need(f"B_preproc/{name}.safetensors"))


def cases() -> list:
    if not (folder() / META).is_file():
        return [pytest.param(None, id=MISSING + META)]
    return [pytest.param(case, id=case["id"]) for case in meta()["cases"]]


def processor(case: dict, exact: bool = True) -> ImageProcessor:
    """Our processor with the settings of a case, read from its own entry; a setting we do not know fails."""
    geometry = meta()["geometries"].get(case["geom"], {})
    variation = case.get("variation", {})
    given = {
        "overlap_margins": meta()["overlap_margins"],
        **case,
        **geometry,
        **case.get("geometry", {}),
        **variation,
    }
    assert set(variation) <= KNOWN, variation
    size = given["base_image_input_size"]
    assert size[0] == size[1] and given["image_token_length_w"] == given["image_token_length_h"]
    vision = VisionConfig(image_size=size[0], patch_size=meta()["image_patch_size"])
    pooling = -(-(vision.image_size // vision.patch_size) // given["image_token_length_w"])
    images = ImageConfig(
        crop_mode=case["crop_mode"],
        max_crops=given["max_crops"],
        overlap_margins=tuple(given["overlap_margins"]),
        resize=RESIZE[given["resize"]],
        pad_value=given.get("pad_value", 0.0),
        use_col_tokens=given.get("use_col_tokens", True),
        legacy_image_mask=True,
        exact=exact,
    )
    return ImageProcessor(
        MolmoConfig(
            text=TextConfig(),
            vision=vision,
            connector=ConnectorConfig(pooling_size=pooling),
            images=images,
        )
    )


@functools.cache
def picture(name: str) -> np.ndarray:
    return load_image(need(f"B_preproc/{meta()['inputs'][name]['file']}").read_bytes())


@pytest.mark.parametrize("name", listed(META, "inputs"))
def test_decoding(name: str) -> None:
    want = meta()["inputs"][name]
    pixels = picture(name)
    assert list(pixels.shape) == want["decoded_shape"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == want["decoded_sha256"]
    assert int(pixels.sum(dtype=np.int64)) == want["decoded_sum"]


def test_tilings() -> None:
    rows = read_json("B_preproc/select_tiling.json")
    assert rows
    for row in rows:
        got = select_tiling(
            row["h"] - row["margin"], row["w"] - row["margin"], row["window"], row["max_crops"]
        )
        assert list(got) == row["tiling"], row


@pytest.mark.parametrize("case", cases())
def test_case(case: dict | None) -> None:
    case = case or meta()
    exact = processor(case)
    pixels = picture(case["image"])
    if "raises" in case:
        for one in (exact, processor(case, exact=False)):
            with pytest.raises(ValueError, match=r"\w+ \w+.*\.$"):  # a sentence
                one(pixels)
        return
    got = exact(pixels)
    check_layout(case, got.layout)
    assert exact.count_tokens(pixels.shape[1], pixels.shape[0]) == case["n_image_tokens"]
    check_masks(case, got.masks)
    check_pixels(case, got.images)
    check_bytes(got.images, processor(case, exact=False)(pixels).images, exact)


def check_layout(case: dict, layout: Layout) -> None:
    want = tensors("layouts")
    ids = meta()["token_ids"]
    tokens = want[case["layout"] + ".tokens"].long() - ids["im_start"] + IM_START
    assert layout.tokens.tolist() == tokens.tolist()
    assert len(layout.tokens) == case["n_image_tokens"]
    positions = want[case["layout"] + ".image_input_idx"].long()
    assert layout.positions.tolist() == positions.where(positions >= 0, -1).tolist()
    if "tiling" in case:
        assert list(layout.tiling) == case["tiling"]


def check_masks(case: dict, masks: torch.Tensor) -> None:
    area = meta()["image_patch_size"] ** 2
    key = f"mask_x{area}|{case['image']}|{case['max_crops']}"
    # the reference's own mask has a wrong shape there; ours is a share per patch
    if case["crop_mode"] == "resize":
        assert masks.shape == (1, case["pixels"]["shape"][1])
        return
    if "mask_rows" in case:
        torch.testing.assert_close(masks, torch.tensor(case["mask_rows"]), atol=1e-6, rtol=0)
    if "mask" not in case:
        return
    body = masks[:-1]
    want = case["mask"]
    assert want["last_row_is_minus1"] and (masks[-1] == -1).all()
    assert body.double().sum().item() == pytest.approx(want["sum_excl_last"], abs=1e-3)
    assert [(body == 0).sum().item(), (body == 1).sum().item()] == [want["n_zero"], want["n_one"]]
    assert ((body > 0) & (body < 1)).sum().item() == want["n_partial"]
    if case["geom"] == "openai":
        assert torch.equal(
            (body * area).round().to(torch.uint8), tensors("masks_and_small_pixels")[key]
        )


def check_pixels(case: dict, images: torch.Tensor) -> None:
    want = case["pixels"]
    assert list(images.shape) == want["shape"] and str(images.dtype) == f"torch.{want['dtype']}"
    samples = tensors("pixel_samples")
    row = want["samples_row"]
    got = images.flatten()[samples["flat_idx"][row].long()]
    torch.testing.assert_close(got, samples["value"][row].float(), atol=2e-5, rtol=0)
    assert images.min().item() == pytest.approx(want["min"], abs=2e-5)
    assert images.max().item() == pytest.approx(want["max"], abs=2e-5)
    mean = 2e-5 * images[0].numel()
    sums = images.double().sum((1, 2)).tolist()
    assert sums == pytest.approx(want["per_crop_sum"], abs=mean)
    assert sum(sums) == pytest.approx(want["sum"], abs=mean * len(images))
    assert images.double().abs().sum().item() == pytest.approx(
        want["abs_sum"], abs=mean * len(images)
    )
    for key, value in tensors("masks_and_small_pixels").items():
        if key == case["id"] + "|pixels_f16":
            torch.testing.assert_close(images, value.float(), atol=2e-3, rtol=0)


def check_bytes(exact: torch.Tensor, crops: torch.Tensor, maker: ImageProcessor) -> None:
    """The mode of bytes lies within a rounding step of float32."""
    mean, std = PIXEL_STATISTICS[maker.config.resize]
    values = normalise_patches(crops, mean, std, maker.geometry.patch_size)
    assert ((values - exact) * torch.tensor(std).repeat(exact.shape[-1] // 3)).abs().max() <= BYTES
