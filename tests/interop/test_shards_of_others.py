"""Shards between this package and Megatron-Energon 7.4, img2dataset 1.47 and webdataset, each as it is installed."""

import csv
import functools
import http.server
import io
import json
import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import webdataset
from environments import clean, environment_at
from PIL import Image

from molmo_ds.cli.make_shards import main as make_shards
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_shards

pytestmark = pytest.mark.everything
SCRIPT = Path(__file__).with_name("energon_calls.py")
PACKAGES = ("megatron-energon==7.4.1", "img2dataset==1.47.0")


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_at("energon", *PACKAGES)


def call(*words: Any) -> None:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=clean(), timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (70 + number, 50), (40 * number, 90, 10)).save(stream, "JPEG")
    return stream.getvalue()


def records(count: int) -> list[tuple[str, dict[str, bytes]]]:
    """Samples of our form."""
    asked = [{"style": "vqa2", "question": f"Number {i}?", "answer": "red"} for i in range(count)]
    return [
        (
            f"{i:03d}",
            {
                "jpg": picture(i),
                "json": json.dumps({"images": ["jpg"], "annotations": [one]}).encode(),
            },
        )
        for i, one in enumerate(asked)
    ]


def seen_by_energon(python: Path, folder: Path) -> dict[str, Any]:
    """What Energon hands out of the part `train`."""
    out = folder.parent / "said.json"
    call(python, SCRIPT, "read", folder, out)
    return json.loads(out.read_text())


def test_energon_reads_ours(python: Path, tmp_path: Path) -> None:
    write_shards(records(5), tmp_path / "ours", samples_per_shard=2)
    assert seen_by_energon(python, tmp_path / "ours") == {
        key: {"jpg": len(parts["jpg"]), "json": json.loads(parts["json"])}
        for key, parts in records(5)
    }


def test_we_read_energons(python: Path, tmp_path: Path) -> None:
    """Tars of webdataset that Energon prepared: indexed in place, and its own parts and sample type stay."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=2, verbose=0) as writer:
        for key, parts in records(6):
            writer.write({"__key__": key, **parts})
    words = ["--non-interactive", "--split-ratio", "2,1,0", "--sample-type", "CrudeWebdataset"]
    call(python.with_name("energon"), "prepare", folder, *words, "--num-workers", "1")
    meta = folder / ".nv-meta"
    before = {name: (meta / name).read_bytes() for name in ("split.yaml", "dataset.yaml")}
    make_shards(["index", str(folder), "--workers", "1"])
    shards = ShardSet(str(folder))
    assert [shards.read(i)["pixels"] for i in range(6)] == [[picture(i)] for i in range(6)]
    assert {name: (meta / name).read_bytes() for name in before} == before
    assert set(seen_by_energon(python, folder)) == {"000", "001", "002", "003"}


def test_we_read_img2datasets(python: Path, tmp_path: Path) -> None:
    """Three pictures of a list of four, with their captions."""
    (tmp_path / "www").mkdir()
    for number in range(3):
        (tmp_path / f"www/{number}.jpg").write_bytes(picture(number))
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with open(tmp_path / "list.csv", "w") as file:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            rows = [(f"{url}/{number}.jpg", f"Picture {number}.") for number in range(4)]
            csv.writer(file).writerows([("url", "caption"), *rows])
        call(python, SCRIPT, "img2dataset", tmp_path / "list.csv", tmp_path / "theirs")
        server.shutdown()
    words = ["--style", "long_caption", "--map", "text=caption", "--workers", "1"]
    make_shards(["tars", str(tmp_path / "theirs/*.tar"), str(tmp_path / "ours"), *words])
    shards = ShardSet(str(tmp_path / "ours"))
    said = [shards.read(i)["annotations"][0]["text"] for i in range(len(shards))]
    assert sorted(said) == ["Picture 0.", "Picture 1.", "Picture 2."]
