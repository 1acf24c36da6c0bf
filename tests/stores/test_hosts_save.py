"""Checkpoints of hosts that share nothing but a bucket: whole or not at all, whichever host is killed.

A host is a process with a disk of its own that saves, and trains nothing. test_hosts_in_store.py trains so, and
tests/multinode has networks.
"""

import multiprocessing
import os
import time
import traceback
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from in_store import whole

from molmo_ds import files
from molmo_ds.config import RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.save.store import ATTEMPT
from molmo_ds.engine.save.writer import Writer
from molmo_ds.stores import lock, upload
from molmo_ds.stores.run_folder import RunFolder
from molmo_ds.weights import checkpoint

SIZE = 120_000  # numbers of the one weight: some parts for each rank of three
SECONDS = 60  # for what takes one
BEAT = 0.2
PART = 100_000
DELAY = 0.02
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["molmo_ds.engine.save.writer", "molmo_ds.stores.run_folder"])


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """It runs before a test has a folder for temporary files, whose path is too long for its socket."""
    forkserver.ensure_running()


def value(step: int) -> torch.Tensor:
    return torch.arange(SIZE, dtype=torch.float32) + step / 8


class Host:
    """One of `count` ranks, a process that saves these steps and says what happened on a disk of its own.

    It is forked from a process that never had a client of a store: one's threads and locks do not live through a fork.
    """

    def __init__(self, config: RunConfig, steps: list[int], rank: int, count: int, port: int):
        self.said = Path(f"{config.scratch}-{rank}.txt")
        self.said.unlink(missing_ok=True)
        own = replace(config, scratch=f"{config.scratch}-{rank}")
        self.process = SERVER.Process(
            target=_live, args=(own, steps, rank, count, port, self.said, dict(os.environ))
        )
        self.process.start()

    def end(self) -> int:
        """Its exit code; AssertionError where it does not end."""
        self.process.join(SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError("it does not end")
        return self.process.exitcode


def _live(
    config: RunConfig,
    steps: list[int],
    rank: int,
    count: int,
    port: int,
    said: Path,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    lock.BEAT = BEAT
    upload.PART = PART
    files.FIRST_DELAY = DELAY
    try:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
        _save(config, steps, World(rank, 0, count, torch.device("cpu")))
        os._exit(0)
    except BaseException:
        said.write_text(traceback.format_exc())
    finally:
        os._exit(1)


def _save(config: RunConfig, steps: list[int], world: World) -> None:
    folder = RunFolder(config.out, config.scratch)
    world.agree(folder.open)
    world.agree(folder.start)
    if world.rank == 0:
        (folder.local / "log.jsonl").write_text("a line\n")
    writer = Writer(config, world)
    checkpoints = f"{config.out}/checkpoints"
    writer.resume_upload(checkpoints)
    share = SIZE // world.size
    for step in steps:
        mine = value(step)[world.rank * share : (world.rank + 1) * share]
        piece = Fragment(
            "weight", (SIZE,), world.rank * share, {"weight": mine}, {}, False, (), owned=True
        )
        writer.save(checkpoints, step, [piece], {world.rank: {}})
        writer.finish()
    world.agree(folder.close)


def test_whichever_host_is_killed(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", BEAT)
    config = RunConfig(out=str(store.folder), scratch=str(tmp_path / "disk"), keep_checkpoints=9)
    checkpoints = store.folder / "checkpoints"

    def start(steps: list[int], count: int) -> list[Host]:
        port = free_port()
        return [Host(config, steps, rank, count, port) for rank in range(count)]

    def there() -> list[int]:
        return [int(name[5:]) for name in whole(checkpoints, tmp_path / "copies")]

    def wait_for(held: str) -> None:
        deadline = time.monotonic() + SECONDS
        while store.wire.faults and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not store.wire.faults, f"{held} did not come"

    def kill(hosts: list[Host], rank: int) -> None:
        hosts[rank].process.kill()
        store.wire.let_go.set()
        store.wire.let_go.clear()
        ends = [host.end() for host in hosts]
        assert all(ends), f"the others end by themselves: {ends}"

    part = r"step-00000002.*rank-00001\.safetensors.*(partNumber=2|00002)"
    store.wire.faults = [(part, "hold")]
    hosts = start([1, 2], 2)
    wait_for(part)
    with pytest.raises(ValueError, match=rf"Another run .*process {hosts[0].process.pid} on"):
        lock.take(store.folder)
    kill(hosts, 1)
    assert there() == [1], "a checkpoint of which one rank's file is missing is none"
    # the same hosts finish it from their disks; then the one that writes the manifest is killed
    manifest = r"(PUT|POST) .*step-00000003.*manifest\.json"
    store.wire.faults = [(manifest, "hold")]
    hosts = start([3], 2)
    wait_for(manifest)
    kill(hosts, 0)
    assert there() == [1, 2], [host.said.read_text()[-500:] for host in hosts if host.said.exists()]
    # another number of hosts has nothing to finish, and saves that step again
    hosts = start([3], 3)
    ends = [host.end() for host in hosts]
    assert ends == [0, 0, 0], [host.said.read_text() for host in hosts if host.said.exists()]
    assert there() == [1, 2, 3]
    names = sorted(child.name for child in checkpoints.children())
    assert names == ["latest", "step-00000001", "step-00000002", "step-00000003"]
    for step in (1, 2, 3):
        folder = checkpoints / f"step-{step:08d}"
        assert not (folder / ATTEMPT).is_file()
        found = checkpoint.open_checkpoint(checkpoint.find(str(folder)))
        assert found.whole("weight").equal(value(step))
    assert (store.folder / "log.jsonl").read_text() == "a line\n"
    assert not list(tmp_path.glob("disk-*/**/*.safetensors")), "nothing is left on their disks"
