"""A run whose folder is in a bucket: killed in mid-upload it loses nothing, and a second one is not let in.

STORE_KILLS=20 kills as often, by hand: docs/evidence/faults.md has the figures.
"""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from in_store import lines, whole

from molmo_ds.stores import lock
from molmo_ds.testing.ranks import Forked
from molmo_ds.weights import checkpoint

KILLS = int(os.environ.get("STORE_KILLS", 1))
STEPS = KILLS + (2 if KILLS == 1 else 8)
LONGEST = 120 + 30 * KILLS  # seconds of a run
# requests of an upload; whichever is drawn is held, and the run killed while it waits for the answer
MOMENTS = [
    r"PUT .*rank-00000.safetensors.*partNumber=[3-5]",
    r"POST .*rank-00000.safetensors.uploadId=",
    r"PUT .*rank-00000.arrow",
    r"PUT .*step-\d+/config.yaml",
    r"PUT .*log.jsonl",
    r"PUT .*manifest.json",
    r"PUT .*checkpoints/latest",
]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_killed_in_mid_upload(store, tiny_run: list[str], tmp_path: Path) -> None:
    draw = random.Random(int(os.environ.get("STORE_SEED", 0)))
    words = [*tiny_run, f"max_steps={STEPS}", "save_interval=1", f"keep_checkpoints={STEPS + 1}"]
    code, said = Forked([*words, f"out={tmp_path / 'plain'}"], tmp_path / "plain.txt").finish(
        LONGEST
    )
    assert code == 0, said
    words += [f"out={store.folder}", f"scratch={tmp_path / 'scratch'}"]
    there: list[str] = []
    for kill in range(KILLS):
        moment = draw.choice(MOMENTS) if kill else MOMENTS[0]
        store.wire.faults = [(moment, "hold")]
        run = Forked(words, tmp_path / "said.txt")
        deadline = time.monotonic() + LONGEST
        while store.wire.faults and run.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.running() and not store.wire.faults, (moment, run.finish())
        time.sleep(draw.random() * 0.1)
        run.kill(signal.SIGKILL)
        store.wire.let_go.set()
        store.wire.let_go.clear()
        now = whole(store.folder / "checkpoints", tmp_path / f"copy-{kill}")
        assert set(there) <= set(now), f"{moment}: a checkpoint that was there is gone"
        there = now
        print(f"kill {kill}: held {moment}; {len(there)} checkpoints whole")
    store.wire.faults.clear()
    store.wire.seen.clear()
    code, said = Forked(words, tmp_path / "said.txt").finish(LONGEST)
    assert code == 0, said
    assert KILLS > 1 or "The upload of step-00000001 was killed; it resumes." in said
    sent = [
        request for request in store.wire.seen if re.search("step-00000001/.*partNumber", request)
    ]
    assert KILLS > 1 or len(sent) < 6, "parts that had come are not sent again"
    steps = [f"step-{step:08d}" for step in range(1, STEPS + 1)]
    assert whole(store.folder / "checkpoints", tmp_path / "copy") == steps
    plain = (tmp_path / "plain" / "log.jsonl").read_text()
    assert lines((store.folder / "log.jsonl").read_text()) == lines(plain)
    for step in steps:
        one, other = (
            checkpoint.open_checkpoint(checkpoint.find(folder))
            for folder in (
                store.folder / "checkpoints" / step,
                tmp_path / "plain" / "checkpoints" / step,
            )
        )
        assert one.shapes == other.shapes and one.scalars == other.scalars
        for name in one.shapes:
            assert one.whole(name).equal(other.whole(name)), (step, name)
    assert json.loads((store.folder / "DONE").read_text())["step"] == STEPS
    assert (store.folder / "tensorboard").children() and not (store.folder / "lock").is_file()
    assert not list((tmp_path / "scratch").rglob("*.safetensors")), "nothing is left on the disk"


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_two_runs_in_one_folder(
    store, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.2)
    held = lock.take(store.folder)
    words = [*tiny_run, f"out={store.folder}", f"scratch={tmp_path / 'scratch'}"]
    code, said = Forked(words, tmp_path / "said.txt").finish()
    held.release()
    assert code == 1
    assert (
        said.rstrip()
        .splitlines()[-1]
        .startswith(f"molmo_ds: Another run writes into {store.folder} (process {os.getpid()} on")
    )
