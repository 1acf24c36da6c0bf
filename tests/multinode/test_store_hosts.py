"""Two hosts that share no disk for the run, only a bucket: killed in mid-upload, continued by one of them.

tests/stores/test_hosts_in_store.py is the quick form, with processes for hosts.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_servers import Wire, served
from supervised import ROOT, Supervised, losses_alone

from molmo_ds import files
from molmo_ds.files import Remote
from molmo_ds.stores.mirror import scratch_of
from molmo_ds.testing import lab
from molmo_ds.weights import checkpoint, checksums

SCRATCH = "/run/scratch"  # a disk of each host's own
STEPS = 40  # enough that the second run is refused before they are made

pytestmark = [
    pytest.mark.everything,
    pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run"),
]


@pytest.fixture(scope="module")
def words(tiny_run: list[str]) -> list[str]:
    kept = [f"max_steps={STEPS}", "save_interval=1", f"keep_checkpoints={STEPS}"]
    return [*tiny_run, *kept, "timeout_seconds=20"]


@pytest.fixture(scope="module")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Step -> loss of the same run on one rank and a disk."""
    return losses_alone(words, tmp_path_factory.mktemp("alone"))


@pytest.fixture(params=["s3", "gs"])
def bucket(
    request: pytest.FixtureRequest, laboratory: lab.Lab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Wire]]:
    """Scheme of a store that runs here, and the wire to it from the hosts."""

    def listener() -> socket.socket:
        laboratory.enter("head")
        return socket.create_server((laboratory.address("head"), 0))

    scheme = request.param
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    address = {"s3": "S3_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[scheme]
    with served({"s3": "s3", "gs": "gcs"}[scheme]) as direct, ThreadPoolExecutor(1) as pool:
        wire = Wire(direct.target, pool.submit(listener).result())
        monkeypatch.setenv(address, wire.address)
        monkeypatch.setattr(
            lab.Lab, "environment", lambda _, own=dict(os.environ): {**own, "PATH": lab.PATH}
        )
        monkeypatch.setenv(address, direct.address)
        system = files.filesystem(f"{scheme}://bucket")
        type(system).clear_instance_cache()  # of another server
        if scheme == "s3":
            files.filesystem("s3://bucket").mkdir("bucket")
        yield scheme, wire
        wire.close()


def whole(checkpoints: Remote, folder: Path) -> list[str]:
    """Names of the checkpoints in the store, copied and compared with their checksums."""
    for step in checkpoint.steps(checkpoints):
        copy = folder / step.name
        copy.mkdir(parents=True, exist_ok=True)
        manifest = checkpoint.read_manifest(step)
        for name in manifest.files:
            (copy / name).write_bytes((step / name).read_bytes())
        assert checksums.wrong_file(copy, manifest.files) is None
    return sorted(step.name for step in checkpoint.steps(checkpoints))


def test_hosts_that_share_a_bucket(
    laboratory: lab.Lab,
    bucket: tuple[str, Wire],
    words: list[str],
    alone: dict[int, float],
    tmp_path: Path,
) -> None:
    scheme, wire = bucket
    out = Remote(f"{scheme}://bucket/run")
    words = [*words, f"scratch={SCRATCH}"]
    own = Path(f"/proc/{laboratory.inner['head']}/root") / str(scratch_of(out.url, SCRATCH))[1:]
    hosts = "host1:1,host2:1"
    # on a busy machine a step may wait ten seconds for the upload of the one before
    said = tmp_path / "said.txt"
    run = Supervised(laboratory, hosts, words, out, own / "launch", said, stall=120)

    def hold(pattern: str) -> None:
        wire.let_go.clear()
        wire.faults = [(pattern, "hold")]
        run.wait(f"{pattern} held", lambda: not wire.faults)

    try:
        run.wait_for_steps(1)
        second = [sys.executable, "-m", "molmo_ds.train", *words, f"out={out}"]
        refused = subprocess.run(
            laboratory.words("host2", second),
            env=laboratory.environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert refused.returncode == 1
        assert re.search(
            rf"Another run writes into {out} \(process \d+ on host1\)", refused.stderr
        ), refused.stderr
        hold(r"(PUT|POST) .*rank-00001\.safetensors")
        rank = ("molmo_ds.train", "--local_rank=")
        seen = [run.fault(lambda: laboratory.kill("host2", rank, signal.SIGKILL))]
        wire.let_go.set()
        there = whole(out / "checkpoints", tmp_path / "first")
        run.wait_for_steps(2)
        hold(r"(PUT|POST) .*manifest\.json")
        seen.append(run.fault(lambda: laboratory.power_off("host1")))
        wire.let_go.set()
        then = whole(out / "checkpoints", tmp_path / "second")
        run.wait("the end", lambda: bool(run.events("done")))
        assert run.process.wait(60) == 0
    finally:
        wire.let_go.set()
        run.end()
        if "host1" not in laboratory.outer:
            laboratory.power_on("host1")
    print(seen, [event["hosts"] for event in run.events("start")])
    assert [event["hosts"] for event in run.events("start")] == [hosts, hosts, "host2:1"]
    steps = [f"step-{step:08d}" for step in range(1, STEPS + 1)]
    assert there and set(there) < set(then)
    assert whole(out / "checkpoints", tmp_path / "copy") == steps
    assert [line["step"] for line in run.steps()] == list(range(1, STEPS + 1))
    losses = {line["step"]: line["loss"] for line in run.steps()}
    assert losses == pytest.approx(alone, abs=1e-5)
    assert json.loads((out / "DONE").read_text())["step"] == STEPS
    assert (out / "tensorboard").children()
