"""Measures the data pipeline, one subcommand per part, and prints a table: python tools/bench/bench_data.py images"""

import argparse
import dataclasses
import io
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import bench_stream
import numpy as np
import simplejpeg
import torch
from PIL import Image
from tqdm import tqdm

from molmo_ds import presets
from molmo_ds.data.sample.pictures.images import ImageProcessor, load_image
from molmo_ds.files import local

Row = dict[str, str | float]


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int, calls: int
) -> dict[str, float]:
    """Best CPU time of one call in ms; rounds take turns, so that a busy machine slows all alike."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(calls):
                function()
            best[name] = min(best[name], (time.process_time() - start) / calls * 1e3)
    return best


def photo(seed: int, width: int = 1024, height: int = 768) -> bytes:
    """A JPEG of quality 90 with the detail of a photograph: about 190 KB at 1024 x 768."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):  # noise at every scale, the finer the fainter
        grid = rng.normal(0, 60 * 0.62**octave, (2**octave * 3 // 4 + 1, 2**octave + 1, 3)).astype(
            np.float32
        )
        grown = [
            Image.fromarray(grid[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        pixels += np.stack(grown, axis=2)
    pixels += 128 + rng.normal(0, 4, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def bench_images(rounds: int) -> list[Row]:
    """File to crops on one thread: the mode of bytes and the exact one, with decoding and resizing alone."""
    config = presets.molmo_7b_d()
    fast = ImageProcessor(config)
    exact = ImageProcessor(
        dataclasses.replace(config, images=dataclasses.replace(config.images, exact=True))
    )
    files = [photo(seed) for seed in range(4)]
    state = {"next": 0}

    def file() -> bytes:
        state["next"] += 1
        return files[state["next"] % len(files)]

    def resize_alone() -> None:
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(file(), "RGB"))
        for height, width in ((756, 1008), (252, 336)):  # of the 3 x 4 tiles and of the global view
            fast.interpolate(pixels, height, width)

    times = interleaved(
        {
            "decode alone (simplejpeg)": lambda: simplejpeg.decode_jpeg(file(), "RGB"),
            "decode + resize alone": resize_alone,
            "file to uint8 crops": lambda: fast(load_image(file())),
            "file to exact float32 crops": lambda: exact(load_image(file())),
        },
        rounds,
        len(files),
    )
    assert fast(load_image(files[0])).layout.crops == 13
    floor = times["decode + resize alone"]
    return [
        {"what": name, "ms": ms, "images per CPU-second": 1e3 / ms, "x decode + resize": ms / floor}
        for name, ms in times.items()
    ]


def small_photos() -> list[bytes]:
    """A few pictures of different shapes for streams that are compared, not timed."""
    return [
        photo(seed, *size) for seed, size in enumerate(((120, 90), (64, 150), (200, 80), (56, 56)))
    ]


BENCHES: dict[str, Callable[[int], list[Row]]] = {
    "images": bench_images,
    "packing": bench_stream.bench_packing,
    "exactness": lambda rounds: bench_stream.bench_exactness(small_photos()),
    "resume": lambda rounds: bench_stream.bench_resume([photo(seed) for seed in range(4)], rounds),
    "memory": lambda rounds: bench_stream.bench_memory([photo(seed) for seed in range(4)]),
}


def machine() -> str:
    """The processor's name and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def show(name: str, rows: list[Row]) -> None:
    """Print rows that share their columns as a table."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows[0]))]
    print(f"\n{name} ({machine()}, {date.today()}, one thread)")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)))


def main(arguments: list[str] | None = None) -> None:
    """Run the named benches (all by default) and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; none = all"
    )
    parser.add_argument("--rounds", type=int, default=10, help="the best round counts")
    parser.add_argument("--json", type=local, help="write the rows there")
    given = parser.parse_intermixed_args(arguments)
    unknown = sorted(set(given.names) - set(BENCHES))
    if unknown:
        raise SystemExit(f"There is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}.")
    torch.set_num_threads(1)
    results = {}
    for name in given.names or BENCHES:
        results[name] = BENCHES[name](given.rounds)
        show(name, results[name])
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
