"""Uploads: whole under faults, only what is missing after a kill, and the file that makes a folder readable last."""

import random
import re
from pathlib import Path

import pytest

from molmo_ds import files
from molmo_ds.files import Remote
from molmo_ds.stores.publish import publish
from molmo_ds.stores.upload import Journal, Parts, parts_of, upload

PARTS = r"(PUT .*partNumber=|POST .*uploadType=media.*parts)"  # a request that sends a part, of either store


def content(size: int, seed: int) -> bytes:
    """Bytes that end in a carriage return, as one part in 256 does."""
    return random.Random(seed).randbytes(size - 1) + b"\r"


def test_whole_under_faults(store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(900_001, 1))
    target = store.folder / "file"
    store.wire.faults = [(PARTS, "503"), (PARTS, "drop"), (PARTS, "503"), (PARTS, "drop")]
    upload(file, target)
    assert not store.wire.faults and target.read_bytes() == file.read_bytes()
    store.wire.faults = [("GET", "503"), ("GET", "drop")]
    assert bytes(files.read_long(target.url, 17, 800_000)) == file.read_bytes()[17:800_000]
    assert not store.wire.faults
    names = {
        path.rpartition("/")[2] for path in files.filesystem(target.url).find(store.folder.url)
    }
    assert names == {"file"}, "no parts are left"


def test_small_objects_come_back_as_they_went(store, tmp_path: Path) -> None:
    store.wire.faults = [("(PUT|POST)", "503")]
    (store.folder / "a" / "b").write_bytes(content(7, 2))
    (store.folder / "empty").write_bytes(b"")
    assert (store.folder / "a" / "b").read_bytes() == content(7, 2)
    assert (store.folder / "empty").is_file() and not (store.folder / "a").is_file()
    assert [child.name for child in store.folder.children()] == ["a", "empty"]
    assert (store.folder / "a").is_dir() and not (store.folder / "b").is_dir()
    with pytest.raises(FileNotFoundError, match="is not there"):
        (store.folder / "b").read_bytes()
    store.folder.delete()
    assert store.folder.children() == []


def test_goes_on_with_what_is_missing(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(1_000_000, 3))
    target = store.folder / "file"
    kind = type(parts_of(target))
    put = kind.put

    def killed(self: Parts, upload: str, number: int, data: bytes) -> str:
        if number == 7:
            raise ValueError("killed")
        return put(self, upload, number, data)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="killed"):
        patch.setattr(kind, "put", killed)
        upload(file, target)
    assert not target.is_file()
    sent = Journal(file, target).tags.keys()
    assert 4 <= len(sent) <= 9 and 7 not in sent
    store.wire.seen.clear()
    upload(file, target)
    again = [request for request in store.wire.seen if re.search(PARTS, request)]
    assert len(again) == 10 - len(sent)
    assert target.read_bytes() == file.read_bytes()
    store.wire.seen.clear()
    upload(file, target)
    assert store.wire.seen == [], "a file that has been sent is not sent again"


def test_a_changed_file_is_sent_whole(store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(300_000, 4))
    upload(file, store.folder / "file")
    file.write_bytes(content(300_000, 5))
    upload(file, store.folder / "file")
    assert (store.folder / "file").read_bytes() == content(300_000, 5)


def test_the_file_that_makes_a_folder_readable_comes_last(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    (folder / "tokenizer").mkdir(parents=True)
    names = ["config.json", "config.yaml", "checksums.json", "a.safetensors", "tokenizer/t.json"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    order = []
    put = Remote.write_bytes
    monkeypatch.setattr(
        Remote, "write_bytes", lambda self, data: (order.append(self.name), put(self, data))
    )
    publish(folder, store.folder)
    assert order == ["a.safetensors", "t.json", "checksums.json", "config.yaml", "config.json"]
    assert (store.folder / "tokenizer" / "t.json").read_text() == "tokenizer/t.json"
