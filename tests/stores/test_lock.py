"""One run a folder, on a disk and in a store."""

import json
import os
import time
from pathlib import Path

import pytest

from molmo_ds.stores import lock
from molmo_ds.stores.run_folder import RunFolder, mark_of


def in_a_child(folder: Path) -> str:
    """What another process hears that asks for the lock."""
    back, forth = os.pipe()
    if not os.fork():
        try:
            lock.take(folder)
            said = "taken"
        except ValueError as error:
            said = str(error)
        os.write(forth, said.encode())
        os._exit(0)
    os.close(forth)
    os.wait()
    return os.read(back, 1000).decode()


def test_on_a_disk(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    held = lock.take(folder)
    assert "Another run writes into" in in_a_child(folder)
    held.release()
    assert not folder.exists(), "made for the lock alone"
    (folder / "kept").mkdir(parents=True)
    assert in_a_child(folder) == "taken" == in_a_child(folder), "a process that ended holds nothing"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        lock.take(tmp_path / "file")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life that come often."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)


def test_in_a_store(store, fast: None) -> None:
    held = lock.take(store.folder)
    with pytest.raises(
        ValueError, match=rf"Another run writes into {store.folder} \(process {os.getpid()} on"
    ):
        lock.take(store.folder)
    lock.refuse_lost(store.folder)
    held.release()
    assert not (store.folder / "lock").is_file()
    lock.take(store.folder).release()


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_rehearsal_leaves_nothing_and_a_run_its_name(store, tmp_path: Path) -> None:
    def opened() -> RunFolder:
        folder = RunFolder(str(store.folder), str(tmp_path))
        folder.open()
        return folder

    opened().close()
    assert store.folder.children() == []
    folder = opened()
    (folder.local / "log.jsonl").write_text("one\n")
    folder.start()
    folder.close()
    name = mark_of(store.folder)
    assert name and (store.folder / "log.jsonl").is_file()
    (folder.local / "other").touch()
    folder = opened()
    assert mark_of(store.folder) == name and (folder.local / "other").is_file(), "the run's own"
    folder.start()
    (folder.local / "log.jsonl").write_text("one\ntwo\n")
    other = lock.process() | {"host": "elsewhere", "pid": 1, "id": "x"}
    (store.folder / "lock").write_bytes(json.dumps(other).encode())
    with pytest.raises(OSError, match="process 1 on elsewhere has taken"):
        folder.close()
    assert (store.folder / "log.jsonl").read_text() == "one\n", "the log is the other run's now"
    (store.folder / "lock").delete()
    folder.release()
    (folder.local / "log.jsonl").write_text("one\n")
    assert mark_of(store.folder) == name
    (folder.local / "run").write_text("another run's")
    (folder.local / "stale").touch()
    opened().close()
    assert not (folder.local / "stale").exists() and (folder.local / "log.jsonl").is_file()


def test_a_holder_that_is_silent_or_gone_is_followed(
    store, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    gone = lock.process() | {"pid": child, "id": "x", "time": 0}

    def held_by(**other: str) -> None:
        (store.folder / "lock").write_bytes(json.dumps(gone | other).encode())

    held_by()
    monkeypatch.setattr(lock, "PATIENCE", 60.0)
    began = time.monotonic()
    held = lock.take(store.folder)  # its process on this machine has ended
    assert time.monotonic() - began < 30
    # hosts of a cluster may have one name, and containers one number for their first process
    for other in ({"host": "elsewhere"}, {"machine": "another boot"}):
        held_by(**other | {"pid": os.getpid()})
        with pytest.raises(OSError, match=f"process {os.getpid()} on .* has taken"):
            lock.refuse_lost(store.folder)
    held.release()
    assert (store.folder / "lock").is_file(), "the lock of another is left alone"
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    held_by(machine="another boot")
    began = time.monotonic()
    lock.take(store.folder).release()
    assert time.monotonic() - began > 0.3, "a number of another machine's says nothing here"
