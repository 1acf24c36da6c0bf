"""Decoding of whole and broken files, layouts, crops and masks."""

import dataclasses
import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from molmo_ds import presets
from molmo_ds.architecture import (
    PIXEL_STATISTICS,
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    VisionConfig,
)
from molmo_ds.data import decode
from molmo_ds.data.decode import BadSample, load_image, read_size, upright_size
from molmo_ds.data.pixels import to_pixels
from molmo_ds.data.sample.pictures.images import ImageProcessor, fit
from molmo_ds.data.sample.pictures.layout import IM_COL, IM_END, IM_PATCH, IM_START, Geometry
from molmo_ds.data.video import frames_at
from molmo_ds.ops.crops import normalise_patches

torch.set_num_threads(1)


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours that tell left from right and top from bottom, with a little noise."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    noise = np.random.RandomState(height + width).randint(0, 24, (height, width))
    channels = [
        200 * x / width + noise,
        200 * y / height + noise,
        100 + 50 * np.sin(x / 9) + 50 * np.cos(y / 7),
    ]
    return np.stack(channels, axis=2).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def processor(**images: object) -> ImageProcessor:
    """Crops of 56 pixels, 14 per patch, margins of one patch."""
    settings = {"overlap_margins": (1, 1), "max_crops": 6, **images}
    return ImageProcessor(
        MolmoConfig(vision=VisionConfig(image_size=56), images=ImageConfig(**settings))
    )


# decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(scene(40, 64)), kind, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB")))
    got = load_image(data)
    assert got.flags.c_contiguous and np.array_equal(got, want)
    width, height, said = read_size(data)
    assert (width, height, said) == (64, 40, orientation)
    assert upright_size(width, height, said) == (got.shape[1], got.shape[0])


def test_modes_become_rgb() -> None:
    rgb = scene(30, 50)
    grey = rgb[..., 0]
    opaque = Image.fromarray(rgb)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 37)
    see_through = opaque.copy()
    see_through.putalpha(Image.fromarray(255 - grey))
    palette = opaque.quantize(64)
    repeat = np.repeat(grey[..., None], 3, axis=2)
    cases = {
        "grey": (encode(Image.fromarray(grey), "PNG"), repeat),
        "16 bit": (encode(deep, "PNG"), repeat),
        "1 bit": (
            encode(Image.fromarray(grey > 99), "PNG"),
            np.repeat((grey > 99)[..., None] * np.uint8(255), 3, axis=2),
        ),
        "alpha is dropped": (encode(see_through, "PNG"), rgb),
        "palette": (encode(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "first frame": (
            encode(opaque.quantize(256), "GIF", save_all=True, append_images=[palette]),
            None,
        ),
    }
    for name, (data, want) in cases.items():
        got = load_image(data)
        assert got.shape == (30, 50, 3) and got.dtype == np.uint8, name
        assert want is None or np.array_equal(got, want), name


MODES = [
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "La",
    "CMYK",
    "YCbCr",
    "HSV",
    "I;16",
    "I;16B",
    "I",
]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_in_memory_gives_the_pixels_of_its_file(mode: str, orientation: int) -> None:
    """Whatever the mode: `to_pixels`, the crops of a PIL picture and, where a file can hold it, `load_image` agree."""
    rgb = scene(40, 64)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    if mode.startswith("I"):
        made = Image.fromarray(grey.astype(np.uint16) * 257)
        made = made if mode == "I;16" else made.convert("I") if mode == "I" else None
        made = made or Image.frombytes("I;16B", (64, 40), (grey.astype(">u2") * 257).tobytes())
        want = np.repeat(grey[..., None], 3, axis=2)
    else:
        made = Image.fromarray(rgb)
        made = made.convert(
            "RGBA" if mode == "RGBa" else "LA" if mode in ("La", "PA") else mode
        ).convert(mode)
        plain = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
        want = np.asarray(made.convert(plain).convert("RGB"))
    exif = made.getexif()
    exif[0x0112] = orientation
    want = want if orientation == 1 else np.rot90(want, -1)
    assert np.array_equal(to_pixels(made), want)
    assert torch.equal(processor()(made).images, processor()(np.ascontiguousarray(want)).images)
    try:
        data = encode(made, "TIFF", exif=exif)
    except (KeyError, OSError):  # no format of ours holds this mode
        assert mode in ("PA", "RGBa", "La", "HSV")
        return
    assert np.array_equal(load_image(data), want)


def test_32_bit_grey_of_8_bits_stays_as_it_is() -> None:
    """As Pillow converts it (and so the reference), and as an array of such numbers; it was black before."""
    grey = np.arange(256, dtype=np.int32).reshape(8, 32)
    want = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    picture = Image.fromarray(grey)
    assert picture.mode == "I" and np.array_equal(np.asarray(picture.convert("RGB")), want)
    for pixels in (to_pixels(picture), to_pixels(grey), load_image(encode(picture, "TIFF"))):
        assert np.array_equal(pixels, want)
    assert to_pixels(Image.fromarray(grey.astype(np.uint16))).max() == 0  # 16 bits: very dark


@pytest.mark.parametrize(("values", "sentence"), [((-1, 7), "-1 to 7"), ((0, 70000), "0 to 70000")])
def test_more_than_16_bits_of_grey_are_refused(values: tuple[int, int], sentence: str) -> None:
    pixels = np.full((20, 30), values[0], np.int32)
    pixels[3, 4] = values[1]
    with pytest.raises(BadSample, match=f"cannot be decoded: .*{sentence}"):
        load_image(encode(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_equal_pillow(mode: str, progressive: bool) -> None:
    data = encode(
        Image.fromarray(scene(75, 93)).convert(mode), "JPEG", quality=85, progressive=progressive
    )
    assert np.array_equal(load_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.9, 0.98])
def test_cut_pictures_are_refused(kind: str, share: float) -> None:
    data = encode(Image.fromarray(scene(200, 300)), kind)
    with pytest.raises(BadSample, match="picture cannot be"):
        load_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("junk", [b"\xff\xd9" * 32, bytes(range(64))])
def test_corrupt_middle_is_refused(kind: str, junk: bytes) -> None:
    data = bytearray(encode(Image.fromarray(scene(200, 300)), kind))
    data[len(data) // 2 : len(data) // 2 + 64] = junk
    with pytest.raises(BadSample, match="cannot be decoded"):
        load_image(bytes(data))


def test_no_picture_at_all() -> None:
    for data in (b"", b"<html><body>404 Not Found</body></html>", bytes(1000)):
        for function in (load_image, read_size):
            with pytest.raises(BadSample, match="cannot be read"):
                function(data)


def test_exif_behind_the_pixels() -> None:
    """PNG allows it; header and decoding must agree, and a broken file stays broken."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(scene(40, 64)), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert moved.index(b"IDAT") < moved.index(b"eXIf")
    assert load_image(moved).shape == (64, 40, 3) and read_size(moved) == (64, 40, 6)
    broken = bytearray(moved)
    broken[len(data) // 2 : len(data) // 2 + 32] = bytes(range(32))
    with pytest.raises(BadSample, match="cannot be decoded"):
        load_image(bytes(broken))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]), st.integers(0, 2**32 - 1))
def test_damage_never_escapes(kind: str, seed: int) -> None:
    """Any damaged file is a picture of some size or a BadSample, whatever the decoders raise."""
    rng = np.random.RandomState(seed)
    data = bytearray(encode(Image.fromarray(scene(24, 36)), kind))
    for where in rng.randint(0, len(data), rng.randint(1, 9)):
        data[where] = rng.randint(256)
    try:
        pixels = load_image(bytes(data))
    except BadSample:
        return
    width, height, orientation = read_size(bytes(data))
    assert pixels.shape == (*upright_size(width, height, orientation)[::-1], 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        out += (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )
    return out


# Pillow warns of some sizes; users may have made warnings errors
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 12_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_unopened(size: tuple[int, int]) -> None:
    for function in (load_image, read_size):
        with pytest.raises(BadSample, match="pixels"):
            function(png_header(*size))


def test_very_long_pictures() -> None:
    long = load_image(encode(Image.fromarray(scene(2, 2)).resize((30_000, 600)), "JPEG"))
    crops = processor()(long)
    assert crops.layout.tiling == (1, 6) and len(crops.images) == 7
    for shape in ((1, 1000), (1000, 1)):
        with pytest.raises(BadSample, match="too narrow"):
            processor()(np.zeros((*shape, 3), np.uint8))
        assert processor(resize="siglip")(np.zeros((*shape, 3), np.uint8)).images.shape[1:] == (
            56,
            56,
            3,
        )


def test_videos_need_av(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    with pytest.raises(ValueError, match="pip install av") as error:
        frames_at(b"..", [0.0])
    assert not isinstance(error.value, BadSample)


# layouts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(3, 27), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(1, 36), st.booleans(),
    st.integers(1, 4000), st.integers(1, 4000),
)  # fmt: skip
def test_every_token_shows_one_patch(
    side: int,
    left: int,
    right: int,
    pooling: int,
    max_crops: int,
    use_col: bool,
    height: int,
    width: int,
) -> None:
    if left + right >= side:
        left = 0
        right = min(right, side - 1)
    geometry = Geometry(
        "overlap-and-resize-c2", max_crops, side * 14, 14, (left, right), pooling, use_col
    )
    layout = geometry.layout(height, width)
    rows, columns = layout.tiling
    assert rows * columns <= max_crops and layout.crops == 1 + rows * columns
    places = layout.positions[layout.positions >= 0]
    # each image token exactly once
    assert sorted(places) == list(np.flatnonzero(layout.tokens == IM_PATCH))
    assert [(layout.tokens == kind).sum() for kind in (IM_START, IM_END)] == [2, 2]
    pooled = geometry.pooled
    lines = (
        0
        if not use_col
        else pooled
        + (len(layout.tokens) - pooled * (pooled + 1) - 4) // (1 + _length(layout, pooled))
    )
    assert (layout.tokens == IM_COL).sum() == lines
    grid = layout.positions[1:].reshape(rows, columns, pooled, pooled)
    ordered = grid.transpose(0, 2, 1, 3).reshape(rows * pooled, columns * pooled)
    for line in ordered:  # reading order runs left to right across crops
        kept = line[line >= 0]
        assert (np.diff(kept) == 1).all()


def _length(layout: object, pooled: int) -> int:
    """Image tokens in one line of the high-resolution part."""
    high = layout.tokens[layout.tokens.tolist().index(IM_END) + 2 :]
    return high.tolist().index(IM_COL)


def test_inner_margins_are_shown_once() -> None:
    """Three tiles of 8 patches with margins 2 and 2: 6 + 4 + 6 patches, so 3 + 2 + 3 pooled ones."""
    geometry = Geometry("overlap-and-resize-c2", 3, 8 * 14, 14, (2, 2), 2, True)
    layout = geometry.layout(100, 100 + 8 * 14 * 2)
    assert layout.tiling == (1, 3)
    shown = [(crop.reshape(4, 4) >= 0).all(axis=0).tolist() for crop in layout.positions[1:]]
    assert shown == [
        [True, True, True, False],
        [False, True, True, False],
        [False, True, True, True],
    ]
    assert len(layout.tokens) == (2 + 4 * 5) + (2 + 4 * (3 + 2 + 3 + 1))


def test_count_tokens_needs_no_picture() -> None:
    maker = ImageProcessor(presets.molmo_7b_d())
    # facts: 3 x 4 tiles, 1196 tokens
    assert maker.count_tokens(1024, 768) == 2 + 12 * 13 + 2 + 28 * 37
    assert maker.layout(1024, 768, frame=True).crops == 1


# crops


@pytest.mark.parametrize("exact", [False, True])
def test_a_picture_of_one_column_keeps_its_colours(exact: bool) -> None:
    """2 x 112 pixels become 1 x 56 in the middle of a crop; torch's antialias on planes would repeat its first row."""
    maker = processor(max_crops=1, exact=exact)
    rows = torch.arange(112.0)[:, None].expand(112, 2)
    picture = torch.stack([2 * rows, 255 - rows, 0 * rows], 2).to(torch.uint8)
    column = maker(picture.numpy()).images[0]
    # two rows become one, and what is linear stays so but at the ends
    row = torch.arange(0.5, 112, 2)
    wanted = torch.stack([2 * row, 255 - row, 0 * row], 1)
    if exact:
        column = column.view(4, 4, 14, 14, 3).transpose(1, 2).reshape(56, 56, 3)
        mean, std = (torch.tensor(values) for values in PIXEL_STATISTICS["clip"])
        wanted = (wanted / 255 - mean) / std
    found = column[1:-1, 27].float()
    torch.testing.assert_close(found, wanted[1:-1], atol=2e-5 if exact else 0.51, rtol=0)


@pytest.mark.parametrize("resize", list(PIXEL_STATISTICS))
@pytest.mark.parametrize("exact", [False, True])
def test_neighbouring_crops_overlap(resize: str, exact: bool) -> None:
    maker = processor(resize=resize, exact=exact)
    crops = maker(scene(84, 140))
    assert crops.layout.tiling == (2, 3)
    images = crops.images
    if exact:
        images = images.view(-1, 4, 4, 14, 14, 3).transpose(2, 3).reshape(-1, 56, 56, 3)
    tiles = images[1:].view(2, 3, 56, 56, 3)
    assert torch.equal(tiles[:, :-1, :, 28:], tiles[:, 1:, :, :28])
    assert torch.equal(tiles[:-1, :, 28:], tiles[1:, :, :28])
    red = tiles.float().mean((2, 3))[..., 0]
    green = tiles.float().mean((2, 3))[..., 1]
    # left to right, top to bottom
    assert (red.diff(dim=1) > 0).all() and (green.diff(dim=0) > 0).all()


@pytest.mark.parametrize("resize", list(PIXEL_STATISTICS))
def test_exact_crops_are_normalised_bytes(resize: str) -> None:
    """A picture of a crop's own size is not changed by resizing, so both modes must say the same."""
    settings = {"crop_mode": "resize", "resize": resize}
    pixels = scene(56, 56)
    crops = processor(**settings)(pixels)
    exact = processor(**settings, exact=True)(pixels)
    assert torch.equal(crops.images[0], torch.from_numpy(pixels))
    torch.testing.assert_close(
        normalise_patches(crops.images, *PIXEL_STATISTICS[resize], 14), exact.images
    )
    assert torch.equal(crops.masks, torch.ones(1, 16))


def test_masks_are_shares_of_real_pixels() -> None:
    """Against the mean of a padded picture of ones, pixel by pixel."""
    pixels = np.full((50, 171, 3), 255, np.uint8)
    right, legacy = (processor(legacy_image_mask=flag)(pixels) for flag in (False, True))
    rows, columns = right.layout.tiling
    real = []
    for tiles in ((1, 1), (rows, columns)):
        height, width = (n * 28 + 28 for n in tiles)
        h, w = fit(50, 171, height, width)
        canvas = np.zeros((height, width))
        canvas[(height - h) // 2 :][:h, (width - w) // 2 :][:, :w] = 1
        for i in range(tiles[0]):
            for j in range(tiles[1]):
                crop = canvas[i * 28 : i * 28 + 56, j * 28 : j * 28 + 56]
                real.append(crop.reshape(4, 14, 4, 14).mean((1, 3)).ravel())
    want = torch.tensor(np.array(real), dtype=torch.float32)
    assert 0 < want.mean() < 1
    torch.testing.assert_close(right.masks, want)
    torch.testing.assert_close(legacy.masks, torch.cat([want[1:], -torch.ones(1, 16)]))
    padding = (
        right.images.view(-1, 4, 14, 4, 14, 3)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(*want.shape, -1)[want == 0]
    )
    assert len(padding) and (padding == 0).all()


def test_pictures_of_other_kinds() -> None:
    pixels = scene(60, 80)
    want = processor()(pixels)
    view = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]  # negative strides
    frozen = pixels.copy()
    frozen.flags.writeable = False
    for picture in (Image.fromarray(pixels), view, frozen):
        assert torch.equal(processor()(picture).images, want.images)
    for picture in (pixels[..., 0], pixels.astype(np.float32), pixels[:0]):
        with pytest.raises(ValueError, match="uint8"):
            processor()(picture)


def test_settings_that_do_not_fit() -> None:
    model = MolmoConfig(
        vision=VisionConfig(image_size=56), images=ImageConfig(overlap_margins=(1, 1))
    )
    wrong = {
        "overlap_margins": {"overlap_margins": (2, 2)},
    }
    for words, change in wrong.items():
        with pytest.raises(ValueError, match=words):
            ImageProcessor(
                dataclasses.replace(model, images=dataclasses.replace(model.images, **change))
            )
    with pytest.raises(ValueError, match="no multiple"):
        ImageProcessor(MolmoConfig(vision=VisionConfig(image_size=57), connector=ConnectorConfig()))
    assert decode.MAX_PIXELS == Image.MAX_IMAGE_PIXELS
