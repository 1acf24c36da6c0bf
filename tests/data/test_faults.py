"""Data that is cut, damaged, swapped or badly served: raised or counted, never silently lost."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from shard_server import ShardServer, serve

from molmo_ds import files
from molmo_ds.data.convert.inspection import inspect
from molmo_ds.data.convert.tars import index_tar
from molmo_ds.data.order.checks import identical, replay
from molmo_ds.data.order.loader import Mixture
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.read.writer import write_meta, write_shards
from molmo_ds.testing.streams import FakeBuilder, make_shards, records, run_config

COUNT = 30


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("sound"), COUNT, samples_per_shard=10)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "shards")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(files, "TIMEOUT", 0.5)


def opened(folder: Path | str) -> ShardSet:
    shards = ShardSet(str(folder))
    shards.check()
    return shards


def faults(folder: Path) -> list[str]:
    *_, report = inspect(ShardSet(str(folder)))
    return report.faults


def member(tar: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(tar) as content:
        return content.getmembers()[number]


def poke(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("where", ["in a member", "at a member's boundary", "before the end mark"])
def test_truncated_tar(folder: Path, where: str) -> None:
    tar = folder / "s-000001.tar"
    end = int(np.fromfile(f"{tar}.idx", "<u8")[-1])
    size = {
        "in a member": 3000,
        "at a member's boundary": member(tar, 7).offset,
        "before the end mark": end,
    }[where]
    os.truncate(tar, size)
    with pytest.raises(
        ValueError, match=f"s-000001.tar is truncated: {size} bytes.*make or copy it again"
    ):
        opened(folder)
    # and to be indexed again
    with pytest.raises(ValueError, match=r"s-000001.tar is truncated|s-000001.tar has"):
        index_tar(tar)


def test_corrupt_header_loses_nothing_and_is_told(folder: Path) -> None:
    tar = folder / "s-000001.tar"
    broken = member(tar, 6)
    poke(tar, broken.offset + 20, b"\xff" * 30)
    # the index knows where everything is
    read = [opened(folder).read(i)["__key__"] for i in range(COUNT)]
    assert read == [key for key, _ in records(COUNT)]
    stem = broken.name.split(".")[0]
    assert faults(folder) == [
        f"{tar}: sample '{stem}' has a damaged header before its member {broken.name[len(stem) + 1 :]}."
    ]
    with pytest.raises(
        ValueError, match=f"s-000001.tar has a corrupt header at byte {broken.offset}"
    ):
        index_tar(tar)


def test_missing_tar_and_tar_that_the_index_does_not_know(folder: Path) -> None:
    (folder / "s-000002.tar").rename(folder / "t-000002.tar")
    with pytest.raises(ValueError, match="holds t-000002.tar, which its index does not know"):
        opened(folder)
    (folder / "t-000002.tar").unlink()
    with pytest.raises(ValueError, match="s-000002.tar is missing, but the index lists it"):
        opened(folder)


def test_index_of_another_tar(folder: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path / "other", COUNT, "s", 15)
    shutil.copy(other / "s-000001.tar.parquet", folder / "s-000001.tar.parquet")
    shards = opened(folder)
    shards.read(3)
    with pytest.raises(ValueError, match="s-000001.tar.parquet is not the one that .nv-meta lists"):
        shards.read(13)
    (folder / "s-000000.tar.parquet").unlink()
    with pytest.raises(
        ValueError, match="s-000000.tar.parquet is missing; run: python tools/make_shards.py index"
    ):
        opened(folder).read(3)
    (folder / ".nv-meta/molmo_ds.json").write_text('{"version": 1')
    with pytest.raises(ValueError, match="molmo_ds.json is damaged"):
        opened(folder)


def test_tar_that_changed_under_its_index(folder: Path) -> None:
    tar = folder / "s-000001.tar"
    poke(tar, member(tar, 4).offset_data + 40, b"?")  # the size stays
    shards = opened(folder)
    name = member(tar, 4).name.split(".")[0]
    index = [key for key, _ in records(COUNT)].index(name)
    with pytest.raises(
        ValueError, match=f"changed under its index: sample '{name}' does not match its hash"
    ):
        shards.read(index)
    assert len(faults(folder)) == 1 and name in faults(folder)[0]
    with open(tar, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match="s-000001.tar changed under its index: "):
        opened(folder)


def test_changed_json_is_not_taken_for_a_bad_sample(folder: Path) -> None:
    tar = folder / "s-000000.tar"
    with tarfile.open(tar) as content:
        json_member = next(m for m in content if m.name.endswith(".json"))
    poke(tar, json_member.offset_data, b"[")
    with pytest.raises(ValueError, match="changed under its index"):
        opened(folder).record(0)


def foreign(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_missing_member_and_duplicate_key(tmp_path: Path) -> None:
    parts = dict(records(4))
    one, two = (
        [(f"{key}.{n}", data) for n, data in parts[key].items()] for key in ("s00001", "s00002")
    )
    with pytest.raises(ValueError, match="names the image jpg, but there is no member s00001.jpg"):
        index_tar(foreign(tmp_path / "a.tar", one[1:] + two))
    with pytest.raises(ValueError, match="Sample 's00001' has no .json part"):
        index_tar(foreign(tmp_path / "b.tar", one[:1] + two))
    with pytest.raises(ValueError, match="Key 's00001' comes twice in"):
        index_tar(foreign(tmp_path / "c.tar", one + two + one))
    with pytest.raises(ValueError, match="Sample 's00001' holds a part twice"):
        index_tar(foreign(tmp_path / "d.tar", one + one))
    with pytest.raises(ValueError, match="d.tar.gz is truncated or not an uncompressed tar"):
        (tmp_path / "d.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(900))
        index_tar(tmp_path / "d.tar.gz")


def test_key_that_comes_in_two_shards_is_told(tmp_path: Path) -> None:
    write_shards(records(5), tmp_path, "a")
    write_shards(records(3, first=4), tmp_path, "b")
    write_meta(tmp_path)
    assert [fault.split(": ")[1] for fault in faults(tmp_path)] == [
        "sample 's00004' has a key that came before."
    ]


def test_short_local_reads_are_tried_again_then_raised(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, short = os.pread, []

    def pread(file: int, length: int, offset: int) -> bytes:
        data = real(file, length, offset)
        return data[:-1] if short and short.pop() else data

    monkeypatch.setattr("molmo_ds.data.read.shards.os.pread", pread)
    shards = opened(folder)
    expected = shards.read(2)
    short[:] = [True] * (files.ATTEMPTS - 1)
    assert shards.read(2) == expected and not short
    short[:] = [True] * files.ATTEMPTS
    with pytest.raises(
        OSError, match=r"s-000000.tar could not be read in 5 tries.*gave \d+ of the \d+ bytes"
    ):
        shards.read(2)


@pytest.fixture(scope="module")
def server(sound: Path) -> Iterator[ShardServer]:
    with serve(sound) as running:
        yield running


def test_http_reads_each_chunk_once_by_range(server: ShardServer, sound: Path) -> None:
    local, remote = opened(sound), opened(server.url)
    server.log.clear()
    assert [remote.read(i) for i in range(COUNT)] == [local.read(i) for i in range(COUNT)]
    ranges = [asked for path, asked, _, _ in server.log if path.endswith(".tar")]
    assert len(ranges) == len(local.bounds) - 1 and all(ranges)
    assert remote.fingerprint == local.fingerprint


def test_any_store_of_fsspec_is_read(sound: Path) -> None:
    store, local = fsspec.filesystem("memory"), opened(sound)
    for path in sound.rglob("*"):
        if path.is_file():
            store.pipe(f"/shards/{path.relative_to(sound)}", path.read_bytes())
    remote = opened("memory://shards")
    assert [remote.read(i) for i in range(COUNT)] == [local.read(i) for i in range(COUNT)]
    store.pipe("/shards/s-000001.tar", b"short")
    with pytest.raises(ValueError, match="memory://shards/s-000001.tar is truncated: 5 bytes"):
        opened("memory://shards")
    with pytest.raises(ValueError, match="abfs://bucket/.*cannot be opened.*adlfs"):
        opened("abfs://bucket/shards")
    with pytest.raises(ValueError, match="what://shards.*cannot be opened"):
        opened("what://shards")


@pytest.mark.parametrize("fault", ["drop", "stall", "503", "429"])
def test_http_faults_that_pass(server: ShardServer, sound: Path, fault: str) -> None:
    remote, local = opened(server.url), opened(sound)
    server.log.clear()
    server.faults[:] = [fault, fault] if fault in ("drop", "503") else [fault]
    assert remote.read(14) == local.read(14) and not server.faults
    tries = [entry for entry in server.log if entry[0].endswith(".tar")]
    assert len(tries) == (3 if fault in ("drop", "503") else 2)
    if fault == "429":
        assert tries[1][3] - tries[0][3] >= 1  # Retry-After: 1
    if fault == "stall":
        assert 0.4 < tries[1][3] - tries[0][3] < 2.4  # the time-out, not the end of the stall


def test_http_faults_that_stay(server: ShardServer) -> None:
    for fault, kind, sentence in (
        ("503", OSError, "s-000000.tar could not be read in 5 tries: 503"),
        ("drop", OSError, "s-000000.tar could not be read in 5 tries"),
        ("whole", ValueError, "does not honour range requests"),
    ):
        remote = opened(server.url)
        server.faults[:] = [fault] * files.ATTEMPTS
        with pytest.raises(kind, match=sentence):
            remote.read(3)
        server.faults.clear()
    with pytest.raises(ValueError, match="has no index"):
        opened(server.url + "/nowhere")


def test_http_shard_that_is_gone_or_shorter(folder: Path) -> None:
    with serve(folder) as server:
        opened(server.url)
        os.truncate(folder / "s-000001.tar", 2048)
        with pytest.raises(ValueError, match="s-000001.tar is truncated: 2048 bytes"):
            opened(server.url)
        (folder / "s-000001.tar").unlink()
        with pytest.raises(ValueError, match="s-000001.tar is missing"):
            opened(server.url)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_stream_over_http_equals_the_local_one(server: ShardServer, sound: Path) -> None:
    batches = []
    for place in (sound, server.url):
        config = run_config({"x": place}, global_batch=2)
        server.faults[:] = ["503", "", "drop", "", "", "429"]
        batches.append(replay(config, Mixture.open(config, FakeBuilder()), 1, 2, 4)[0])
    server.faults.clear()
    assert identical(*batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_io_errors_of_a_worker_reach_the_run_as_one_sentence(folder: Path, workers: int) -> None:
    tar = folder / "s-000001.tar"
    poke(tar, member(tar, 4).offset_data + 40, b"?")
    config = run_config({"x": folder}, global_batch=2)
    with pytest.raises(ValueError, match=f"^{tar} changed under its index: [^\n]*$"):
        replay(config, Mixture.open(config, FakeBuilder()), 1, workers, 30)


def test_remote_chunks_beyond_what_is_kept_are_fetched_again(
    server: ShardServer, sound: Path
) -> None:
    remote, local = opened(server.url), opened(sound)
    remote.serve(3)
    server.log.clear()
    for chunk in (0, 1, 2, 0, 3, 1, 4, 0):
        index = int(remote.bounds[chunk])
        assert remote.read(index) == local.read(index)
    fetched = [asked for path, asked, _, _ in server.log if path.endswith(".tar")]
    assert len(fetched) == 7  # chunks 0 1 2 3 1 4 0
    assert fetched[4] == fetched[1] and fetched[6] == fetched[0] and len(set(fetched)) == 5
    assert [remote.read(i) for i in range(COUNT)] == [local.read(i) for i in range(COUNT)]
