"""Malformed input by the hundred: a sentence or a counted skip, never a traceback, and nothing lost without a number.

MOLMO_FUZZ=2000 pytest tests/data/test_malformed.py tries more; MOLMO_FUZZ_SEED=N tries others.
"""

import contextlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from molmo_ds.cli import inspect_shards
from molmo_ds.cli import make_shards as tool
from molmo_ds.data.convert.tars import index_tar
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.annotation import KEYS
from molmo_ds.testing.streams import picture

EXAMPLES = int(os.environ.get("MOLMO_FUZZ", "60"))
SEED = int(os.environ.get("MOLMO_FUZZ_SEED", "0"))
VALUES = (
    None,
    True,
    0,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    " ",
    "B",
    "<image>Q",
    "\ud83d",
    "a" * 300,
    [],
    {},
)
VALUES += (
    [None],
    [[1, 2]],
    [[1, "2"]],
    ["a", "b"],
    ["a", 1],
    [{"role": "user", "content": "x"}],
    [{"points": None}],
)
VALUES += (
    [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": None}],
    "['cat', 'dog']",
    [[150, -3]],
    7,
)
NAMES = (
    "1.jpg",
    "2.txt",
    "a/b.jpg",
    "a/b.json",
    "._1.jpg",
    "__MACOSX/x.txt",
    "README",
    "1.JPG",
    "x.gif",
    "x.txt",
    "y.json",
)
NAMES += (
    "caf\udce9.txt",
    "k" * 120 + ".txt",
    "z.tar.gz",
    "1.txt",
    "..json",
    "w.jpg",
    "w.json",
    "v.mp4",
    "v.txt",
)


def pick(rng: np.random.RandomState, values: tuple) -> Any:
    return values[rng.randint(len(values))]


def a_picture(rng: np.random.RandomState) -> bytes:
    """A picture of some format and mode; half of them are cut, damaged, empty or something else."""
    kind = rng.randint(8)
    if kind == 0:
        return pick(
            rng,
            (
                b"",
                b"<html>",
                b"RIFF\0\0\0\0WAVE",
                b"\0\0\0\x18ftypheic",
                b"\0\0\0\x18ftypisom",
                b"%PDF-1",
                b"GIF89a",
            ),
        )
    out = io.BytesIO()
    mode = pick(rng, ("RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "F", "I", "I;16"))
    made = (
        Image.open(io.BytesIO(picture(int(rng.randint(9)))))
        .convert("L")
        .convert("RGB" if mode == "P" else "L")
    )
    made = made.convert("F").convert("I").convert(mode) if mode == "I;16" else made.convert(mode)
    with contextlib.suppress(OSError, ValueError):
        made.save(out, pick(rng, ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")))
    data = bytearray(out.getvalue() or picture(1))
    if kind == 1:
        del data[rng.randint(len(data)) :]
    if kind == 2:
        data[rng.randint(len(data))] ^= 1 << rng.randint(8)
    return bytes(data)


def an_annotation(rng: np.random.RandomState) -> Any:
    if rng.randint(9) == 0:
        return pick(rng, VALUES)
    known = {"style": "vqa2", "question": "Which?", "answer": "a boat"}
    for key in rng.choice(sorted(KEYS), rng.randint(3), replace=False):
        known[str(key)] = pick(rng, VALUES)
    return known


def a_row(rng: np.random.RandomState) -> Any:
    if rng.randint(20) == 0:
        return pick(rng, VALUES)
    row: dict[str, Any] = {
        "image": pick(
            rng, ("0.bin", "1.bin", "2.bin", ["0.bin", "1.bin"], None, "none.jpg", 5, ".", [None])
        )
    }
    if rng.randint(3):
        row["annotations"] = [an_annotation(rng) for _ in range(rng.randint(3))]
    else:
        row |= {
            key: value
            for key, value in [("question", "Which?"), ("answer", pick(rng, VALUES))]
            if rng.randint(4)
        }
    for key in rng.choice(
        ["key", "metadata", "num_frames", "img", "images", "text"], rng.randint(2), replace=False
    ):
        row[str(key)] = pick(rng, VALUES)
    return row


def made_of(
    run: Callable[[], None], out: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Samples that a conversion made and what it said; its shards must be sound to the inspection."""
    try:
        run()
    except (ValueError, OSError) as error:
        assert str(error) and not isinstance(error, UnicodeError), error
        assert not out.exists() and "\n" not in str(error)
        return 0, str(error) + capsys.readouterr().err
    said = capsys.readouterr()
    inspect_shards.main([str(out)])  # exits with a fault where training could not use a sample
    said_twice = capsys.readouterr().out
    assert "every member is sound" in said_twice and "NaN" not in said_twice
    return len(ShardSet(str(out))), said.out + said.err


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_lines(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row is a sample or named by its line."""
    rng = np.random.RandomState([SEED, number])
    for i in range(3):
        (tmp_path / f"{i}.bin").write_bytes(a_picture(rng))
    rows = [json.dumps(a_row(rng)).encode() for _ in range(8)]
    rows = [
        row if rng.randint(12) else row[: rng.randint(1, len(row) + 1)] + b"\xe9" for row in rows
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows))
    out = tmp_path / "out"
    run = [
        "jsonl",
        str(tmp_path / "rows.jsonl"),
        str(out),
        "--style",
        "vqa2",
        "--workers",
        "1",
        "--samples-per-shard",
        "3",
    ]
    count, said = made_of(lambda: tool.main(run), out, capsys)
    if rows[0].lstrip()[:1] != b"[":
        assert (
            count + len(re.findall(r"^skipped \S+rows.jsonl line \d+: .", said, re.MULTILINE)) == 8
        )


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_folders_and_tars(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture is a sample, named, or in the count of what is passed over; tars may be damaged too."""
    rng = np.random.RandomState([SEED, number, 1])
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[: rng.randint(4, len(NAMES))]]
    files: dict[str, bytes] = {}
    for name in names:
        text = pick(rng, (b"a boat", b"\xef\xbb\xbfa boat", b"caf\xe9", b"", b"\xff\xfea\0"))
        record = json.dumps(
            pick(
                rng, ({"annotations": [an_annotation(rng)]}, [an_annotation(rng)], {"text": "x"}, 5)
            )
        )
        files[name] = {"t": text, "n": record.encode()}.get(
            name[-1] if name.endswith(("txt", "json")) else "", a_picture(rng)
        )
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = ["--style", "long_caption", "--workers", "1"]
    out = tmp_path / "out"
    count, said = made_of(
        lambda: tool.main(["folder", str(tmp_path / "in"), str(out), *options]), out, capsys
    )
    shown = [
        n
        for n in files
        if n.lower().endswith((".jpg", ".gif", ".mp4")) and not n.startswith((".", "__"))
    ]
    assert count + len(re.findall(r"^skipped ", said, re.MULTILINE)) == len(shown)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    raw = bytearray(tar.getvalue())
    if rng.randint(3) == 0:
        raw[rng.randint(len(raw))] ^= 1 << rng.randint(8)
    if rng.randint(4) == 0:
        del raw[rng.randint(len(raw)) :]
    (tmp_path / "t.tar").write_bytes(raw)
    made_of(
        lambda: tool.main(["tars", str(tmp_path / "t.tar"), str(tmp_path / "out2"), *options]),
        tmp_path / "out2",
        capsys,
    )
    with contextlib.suppress(ValueError):
        index_tar(tmp_path / "t.tar")
