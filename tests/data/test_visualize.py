"""tools/visualize.py: what the page says is what the batches hold, and a browser can show it."""

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from molmo_ds import presets
from molmo_ds.cli import show_shards as visualize
from molmo_ds.data.read.writer import write_shards
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.data.show.documents import as_bytes
from molmo_ds.testing import run_files

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visualize")
    write_shards(run_files.records(), folder / "grey <squares>", samples_per_shard=20)
    out = folder / "page.html"
    overrides = [
        *run_files.MODEL,
        "preset=tiny",
        "data.sequence_length=160",
        "data.crops_per_sequence=6",
    ]
    visualize.main(
        [
            str(folder / "grey <squares>"),
            str(out),
            *overrides,
            "--sequences",
            "6",
            "--documents",
            "5",
        ]
    )
    return out


def test_page_is_whole_and_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    elements = Elements()
    elements.feed(text)
    assert "http" not in text and "<script" not in text and "url(" not in text
    sources = [attributes["src"] or "" for tag, attributes in elements.tags if tag == "img"]
    assert all(source.startswith("data:image/") for source in sources) and len(sources) >= 4 + 4
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()
    assert "grey <squares>" in elements.text  # escaped in the file
    for needed in (
        "of token slots filled",
        "Packing",
        "Who sees whom",
        "branch 2",
        "picture tokens",
        "how bright",
    ):
        assert needed in elements.text.replace("\xa0", " "), needed
    opened = re.findall(r"<(section|article|figure|div|p|label)\b", text)
    closed = re.findall(r"</(section|article|figure|div|p|label)>", text)
    assert sorted(opened) == sorted(closed)


def test_page_shades_exactly_the_learnt_tokens(page: Path) -> None:
    elements = Elements()
    elements.feed(page.read_text())
    tokens = [attributes for tag, attributes in elements.tags if tag == "s"]
    shaded = [attributes.get("class") == "on" for attributes in tokens]
    weighty = [float((attributes["title"] or "").rsplit(" ", 1)[1]) > 0 for attributes in tokens]
    assert shaded == weighty and 0 < sum(shaded) < len(shaded)


def test_crops_of_the_exact_mode_are_shown_as_the_pixels_they_were() -> None:
    config = presets.molmo_7b_d()
    scene = np.random.RandomState(3).randint(0, 256, (500, 700, 3), np.uint8)
    exact = ImageProcessor(replace(config, images=replace(config.images, exact=True)))
    normalised = exact(scene).images
    bare = ImageProcessor(config)(scene).images
    assert normalised.ndim == 3 and len(normalised) > 1
    for ours, pixels in zip(normalised, bare, strict=True):
        shown = as_bytes(ours, exact)
        assert shown.shape == pixels.shape and shown.dtype == torch.uint8
        # bytes resized in bytes are within 1.01 of 255
        assert (shown.int() - pixels.int()).abs().max() <= 2
        assert as_bytes(pixels, exact) is pixels


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the screenshot of tools/visualize.py is NOT checked"
)
def test_browser_shows_the_page(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    command = [
        BROWSER,
        *FLAGS.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1240,2400",
    ]
    subprocess.run(
        [*command, f"--screenshot={shot}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (2400, 1240, 3)
    paper = (np.abs(pixels - (244, 245, 247)).max(axis=2) < 3).mean()
    white = (pixels.min(axis=2) > 252).mean()
    vivid = (np.ptp(pixels, axis=2) > 60).mean()  # bars, maps, shaded tokens
    ink = (pixels.max(axis=2) < 90).mean()  # text
    assert 0.05 < paper < 0.6 and white > 0.1 and vivid > 0.01 and ink > 0.002, (
        paper,
        white,
        vivid,
        ink,
    )
