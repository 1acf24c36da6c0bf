"""Hosts that share nothing but a bucket: one is killed in mid-upload, and the run continues on another number of them.

Each host is a process with a scratch folder of its own; tests/multinode has hosts with networks of their own.
--all has Google's store as well. STORE_KILLS=20 kills as often, by hand: docs/evidence/faults.md has the figures.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from in_store import lines, whole

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import alone
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.save.store import ATTEMPT, InStore
from molmo_ds.engine.save.writer import Writer
from molmo_ds.stores import lock
from molmo_ds.stores.run_folder import MARK
from molmo_ds.testing.ranks import Forked, rank_environment

KILLS = int(os.environ.get("STORE_KILLS", 1))
STEPS = KILLS + (2 if KILLS == 1 else 8)
LONGEST = 400 + 30 * KILLS  # seconds of a run
MOMENTS = [  # requests of an upload, of which one is held while a host is killed
    r"(PUT|POST) .*rank-00000\.safetensors",
    r"(PUT|POST) .*rank-00001\.safetensors",
    r"(PUT|POST) .*rank-00001\.arrow",
    r"(PUT|POST) .*attempt",
    r"(PUT|POST) .*log\.jsonl",
    r"(PUT|POST) .*manifest\.json",
    r"(PUT|POST) .*checkpoints(/|%2F)latest",
]
FIRST = r"(PUT|POST) .*step-00000002.*rank-00001\.safetensors"


@pytest.fixture(scope="module")
def words(tiny_run: list[str]) -> list[str]:
    return [*tiny_run, f"max_steps={STEPS}", "save_interval=1", f"keep_checkpoints={STEPS + 1}"]


@pytest.fixture(scope="module")
def plain(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The log of one process on a disk that nothing happens to."""
    folder = tmp_path_factory.mktemp("plain")
    code, said = Forked([*words, f"out={folder / 'out'}"], folder / "said").finish(LONGEST)
    assert code == 0, said
    return lines((folder / "out/log.jsonl").read_text())


def started(words: list[str], count: int, folder: Path) -> list[Forked]:
    """A process for each of `count` hosts."""
    port = free_port()
    hosts = []
    for number in range(count):
        given = [*words, f"scratch={folder / f'host-{number}'}"]
        environment = rank_environment(number, count, port) | {"LOCAL_RANK": "0"}
        hosts.append(Forked(given, folder / f"said-{number}", environment))
    return hosts


BOTH = ["s3", pytest.param("gs", marks=pytest.mark.everything)]


@pytest.mark.parametrize("store", BOTH, indirect=True)
def test_a_host_killed_in_mid_upload(
    store, words: list[str], plain: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.2)
    draw = random.Random(int(os.environ.get("STORE_SEED", 0)))
    words = [*words, f"out={store.folder}"]
    checkpoints = store.folder / "checkpoints"
    there: list[str] = []
    for kill in range(KILLS):
        count = draw.choice((2, 2, 4)) if kill else 2
        moment = draw.choice(MOMENTS) if kill else FIRST
        victim = draw.randrange(count) if kill else 1
        store.wire.faults = [(moment, "hold")]
        hosts = started(words, count, tmp_path)
        deadline = time.monotonic() + LONGEST
        while store.wire.faults and hosts[0].running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not store.wire.faults, (moment, [host.finish() for host in hosts])
        if not kill:
            code, said = Forked([*words, f"scratch={tmp_path}"], tmp_path / "second").finish()
            assert code == 1 and f"Another run writes into {store.folder} (process" in said, said
        time.sleep(draw.random() * 0.1)
        hosts[victim].kill(signal.SIGKILL)
        store.wire.let_go.set()
        store.wire.let_go.clear()
        ends = [host.finish(LONGEST)[0] for host in hosts]
        assert all(ends), f"the other hosts end by themselves: {ends}"
        now = whole(checkpoints, tmp_path / f"copy-{kill}")
        assert set(there) <= set(now), f"{moment}: a checkpoint that was there is gone"
        there = now
        print(f"kill {kill}: host {victim} of {count}, {moment}; {len(there)} whole")
    assert KILLS > 1 or there == ["step-00000001"]
    store.wire.faults.clear()
    (last,) = started(words, 1, tmp_path)
    code, said = last.finish(LONGEST)
    assert code == 0, said
    assert KILLS > 1 or "resumed from step 1" in said
    steps = [f"step-{step:08d}" for step in range(1, STEPS + 1)]
    assert whole(checkpoints, tmp_path / "copy") == steps
    assert sorted(child.name for child in checkpoints.children()) == ["latest", *steps]
    assert not any((checkpoints / step / ATTEMPT).is_file() for step in steps)
    log = lines((store.folder / "log.jsonl").read_text())
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    for line, expected in zip(log, plain, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert json.loads((store.folder / "DONE").read_text())["step"] == STEPS
    assert (store.folder / "tensorboard").children() and not (store.folder / "lock").is_file()
    assert not list((tmp_path / "host-0").rglob("*.safetensors")), "nothing is left on its disk"


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_an_upload_that_others_have_begun_since_does_not_resume(store, tmp_path: Path) -> None:
    """Files of two saves would lie under one manifest, each as long as the other's."""
    config = RunConfig(out=str(store.folder), scratch=str(tmp_path))
    target = store.folder / "checkpoints" / "step-00000002"
    (store.folder / MARK).write_bytes(b"this run")
    place = InStore(target, config, alone())
    place.begin()
    for name in ("rank-00000.safetensors", "config.yaml"):
        (place.partial / name).write_bytes(b"bytes")
    place.written({"rank-00000.safetensors": {"bytes": 5}})
    (target / "rank-00000.safetensors").write_bytes(b"other")
    (target / ATTEMPT).write_bytes(b"of others")
    Writer(config, alone()).resume_upload(str(store.folder / "checkpoints"))
    assert not (target / "manifest.json").is_file()
    (target / ATTEMPT).write_bytes(place.attempt.encode())
    with pytest.raises(OSError, match="step-00000002 could not be written"):  # it has no index
        Writer(config, alone()).resume_upload(str(store.folder / "checkpoints"))
