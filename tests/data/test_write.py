"""Shards: what webdataset, tarfile and Energon's layout expect, reproducible, never half written."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from PIL import Image

from molmo_ds.data.convert.tars import index_tar
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_meta, write_shards
from molmo_ds.testing.streams import make_shards, picture, records

SAMPLE = {"json": b'{"images": [], "annotations": [{"style": "text", "text": "hello"}]}'}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    tars = write_shards(records(23), tmp_path, "train", 10)
    assert [tar.name for tar in tars] == [
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    read = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))
    assert [
        (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in read
    ] == list(records(23))


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    first = everything(make_shards(tmp_path / "a", 23))
    second = everything(make_shards(tmp_path / "b", 23))
    assert first == second
    names = {
        "s-000000.tar",
        "s-000000.tar.idx",
        "s-000000.tar.parquet",
        ".nv-meta/.info.json",
        ".nv-meta/molmo_ds.json",
    }
    assert names <= set(first)


def test_index_is_energons(tmp_path: Path) -> None:
    make_shards(tmp_path, 23)
    counts = json.loads((tmp_path / ".nv-meta/.info.json").read_text())["shard_counts"]
    assert counts == {"s-000000.tar": 20, "s-000001.tar": 3}
    for name, count in counts.items():
        offsets = np.fromfile(tmp_path / f"{name}.idx", "<u8").tolist()
        starts: dict[str, int] = {}
        with tarfile.open(tmp_path / name) as tar:
            for member in tar:
                starts.setdefault(member.name.split(".")[0], member.offset)
        assert offsets[:-1] == list(starts.values()) and len(starts) == count
        tail = (tmp_path / name).read_bytes()[offsets[-1] :]
        assert tail == bytes(1024)


def test_energons_own_choices_are_kept(tmp_path: Path) -> None:
    """A folder that Energon prepared keeps its parts and its sample type; what we wrote ourselves grows."""
    make_shards(tmp_path, 23)
    meta = tmp_path / ".nv-meta"
    assert yaml.safe_load((meta / "dataset.yaml").read_text())["__class__"] == "CrudeWebdataset"
    assert yaml.safe_load((meta / "split.yaml").read_text())["split_parts"]["train"] == [
        "s-000000.tar",
        "s-000001.tar",
    ]
    theirs = {
        "split.yaml": "split_parts:\n  train: [s-000000.tar]\n  val: [s-000001.tar]\nexclude: []\n",
        "dataset.yaml": "__class__: VQASample\n",
    }
    for name, text in theirs.items():
        (meta / name).write_text(text)
    write_meta(tmp_path)
    assert {name: (meta / name).read_text() for name in theirs} == theirs
    (meta / "split.yaml").write_text("split_parts: {train: [s-000000.tar]}\n")
    write_meta(tmp_path)
    assert "s-000001.tar" in (meta / "split.yaml").read_text()


def test_sidecar_says_where_the_bytes_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    turned = Image.new("RGB", (40, 24))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(buffer, "JPEG", exif=exif)
    content = {
        "images": ["0.jpg", "1.jpg"],
        "annotations": [{"style": "x", "question": "abc", "answers": ["de", "f"]}],
    }
    parts = {"0.jpg": picture(1), "1.jpg": buffer.getvalue(), "json": json.dumps(content).encode()}
    (tar,) = write_shards([("one", parts)], tmp_path)
    (row,) = pq.read_table(f"{tar}.parquet").to_pylist()
    raw = tar.read_bytes()
    where = zip(row["part_names"], row["part_offsets"], row["part_lengths"])
    assert {name: raw[start : start + length] for name, start, length in where} == parts
    assert (row["key"], row["widths"], row["heights"], row["orientations"]) == (
        "one",
        [24, 40],
        [16, 24],
        [1, 6],
    )
    assert row["text_length"] == len("x" + "abc" + "de" + "f")
    assert ShardSet(str(tmp_path)).record(0)["sizes"] == [(24, 16), (24, 40)]


def test_indexing_a_foreign_tar_equals_writing_it(tmp_path: Path) -> None:
    ours = make_shards(tmp_path / "ours", 9)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    # writes other modes, times and part order
    with webdataset.TarWriter(str(foreign / "s-000000.tar")) as writer:
        for key, parts in records(9):
            writer.write({"__key__": key} | dict(reversed(parts.items())))
    index = index_tar(foreign / "s-000000.tar")
    index.save(foreign / "s-000000.tar")
    write_meta(foreign)
    a = ShardSet(str(ours))
    b = ShardSet(str(foreign))
    assert len(a) == len(b) == 9
    assert all(a.read(i) == b.read(i) for i in range(9))
    again = index_tar(ours / "s-000000.tar")
    assert again.rows == pq.read_table(ours / "s-000000.tar.parquet").to_pylist()
    assert again.offsets == np.fromfile(ours / "s-000000.tar.idx", "<u8").tolist()


def test_long_names_and_folders_of_a_foreign_tar(tmp_path: Path) -> None:
    key = "./deep/" + "k" * 150
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("./deep")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        for part, data in {"JSON": SAMPLE["json"]}.items():
            info = tarfile.TarInfo(f"{key}.{part}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_tar(tmp_path / "x.tar").save(tmp_path / "x.tar")
    write_meta(tmp_path)
    assert ShardSet(str(tmp_path)).read(0)["__key__"] == key


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([("a.b", SAMPLE)], "splits names at dots"),
        ([("a", SAMPLE), ("a", SAMPLE)], "'a' comes twice"),
        ([("k" * 120, SAMPLE)], "use a shorter key"),
        ([("a", {"jpg": b""})], "no .json part"),
        ([("a", {"json": b"[]"})], "not in the record format"),
        ([("a", {"json": b"{"})], "JSON of sample 'a' cannot be read"),
        ([("a", {"json": b'{"images": ["jpg"], "annotations": []}'})], "no member a.jpg"),
        ([], "no sample to write"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    samples: list[tuple[str, dict[str, bytes]]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_shards(samples, tmp_path)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    before = everything(make_shards(tmp_path, 5))
    with pytest.raises(ValueError, match="already holds shards"):
        make_shards(tmp_path, 6)
    assert everything(tmp_path) == before


def test_a_killed_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    code = "import sys; from molmo_ds.testing import streams; streams.make_shards(sys.argv[1], 10**6, samples_per_shard=4)"  # noqa: E501
    path = str(Path(__file__).parents[2])
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.kill()
    writer.wait()
    tars = sorted(tmp_path.glob("*.tar"))
    assert len(tars) >= 3
    for tar in tars:
        assert index_tar(tar).offsets == np.fromfile(f"{tar}.idx", "<u8").tolist()
    with pytest.raises(ValueError, match="has no index"):
        ShardSet(str(tmp_path))


def test_an_interrupted_shard_leaves_no_tar(tmp_path: Path) -> None:
    def broken() -> object:
        yield from records(7)
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError):
        write_shards(broken(), tmp_path, samples_per_shard=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"shard-000000.tar{end}" for end in ("", ".idx", ".parquet")
    ]
    # the set is not taken for whole
    with pytest.raises(ValueError, match="has no index.*make_shards.py index"):
        ShardSet(str(tmp_path))
