"""A real run on two ranks, killed at random moments, on a full disk, with damaged checkpoints: as if left alone.

TORTURE_KILLS=50 TORTURE_STRATEGIES=zero3 python -m pytest tests/torture        (5 kills, dealt out to two, unless told)

TORTURE_SEED draws other moments.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from molmo_ds.testing.ranks import Forked, free_port, rank_environment

KILLS = int(os.environ.get("TORTURE_KILLS", 5))
SEED = int(os.environ.get("TORTURE_SEED", 20261122))
# kills are dealt out in turn
STRATEGIES = os.environ.get("TORTURE_STRATEGIES", "zero3,zero1").split(",")
# enough that kills are spread over the run, also of steps of 10 ms
STEPS = 24 + 8 * -(-KILLS // len(STRATEGIES))
EXACT = ("loss", "ce_loss", "z_loss", "accuracy", "tokens", "learnt_tokens", "positions", "crops", "documents",
         "weight", "grad_norm/text", "grad_norm/vision", "grad_norm/connector")  # fmt: skip


def manifest(out: Path) -> bool:
    """Whether a checkpoint is about to be renamed."""
    return any(out.glob("checkpoints/step-*.partial/manifest.json"))


# a moment is (what of the run's files is waited for, longest random pause after it in seconds)
MOMENTS: dict[str, tuple[Callable[[Path], object], float]] = {
    "resume": (lambda out: True, 4.0),
    "step": (lambda out: (out / "heartbeat").exists(), 0.05),
    "save": (lambda out: any(out.glob("checkpoints/step-*.partial")), 0.01),
    "files": (lambda out: any(out.glob("checkpoints/step-*.partial/parts/*.arrow")), 0.002),
    "rename": (manifest, 0.001),
    "latest": (lambda out: (out / "checkpoints" / "latest.new").exists(), 0.001),
}


class Run:
    """Two ranks of one run."""

    def __init__(self, words: list[str], out: Path) -> None:
        self.out, port = out, free_port()
        (out / "heartbeat").unlink(missing_ok=True)
        files = [out.with_name(f"{out.name}-rank{rank}.txt") for rank in range(2)]
        environments = [rank_environment(rank, 2, port) for rank in range(2)]
        self.ranks = [Forked([*words, f"out={out}"], *pair) for pair in zip(files, environments)]

    def running(self) -> bool:
        return self.ranks[0].running() and self.ranks[1].running()

    def wait(self, seen: Callable[[], object], timeout: float = 400) -> bool:
        """Whether it is seen before the run or the time ends."""
        deadline = time.monotonic() + timeout
        while self.running() and time.monotonic() < deadline:
            if seen():
                return True
            time.sleep(0.0005)
        return False

    def goes_on(self, steps: int) -> bool:
        """Whether it makes so many steps more than are in the log."""
        goal = len(lines(self.out)) + steps
        return self.wait(lambda: (self.out / "heartbeat").exists() and len(lines(self.out)) >= goal)

    def kill(self, draw: random.Random) -> None:
        """kill -9 of one rank, and a moment later of the other, as launchers do."""
        draw.shuffle(self.ranks)
        for rank in self.ranks:
            rank.kill(signal.SIGKILL)
            time.sleep(draw.random() * 0.05)

    def finish(self) -> list[tuple[int, str]]:
        """(exit code, output) of each rank."""
        return [rank.finish(timeout=400) for rank in self.ranks]


def lines(out: Path) -> list[dict]:
    """Whole lines of the log."""
    path = out / "log.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def curve(out: Path) -> list[tuple]:
    """Step and everything of it that must not depend on what happened, bit by bit; every step once."""
    logged = lines(out)
    assert [line["step"] for line in logged] == list(range(1, len(logged) + 1)), (
        "steps are missing or repeated"
    )
    return [(line["step"], *(line[key] for key in EXACT)) for line in logged]


@pytest.fixture(scope="module", params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def words(tiny_run: list[str], strategy: str) -> list[str]:
    cheap = [f"strategy=ds_configs/{strategy}.json", "micro_batch=2", "timeout_seconds=60"]
    return [*tiny_run, *cheap, f"max_steps={STEPS}", "save_interval=1", "keep_checkpoints=3"]


@pytest.fixture(scope="module")
def alone(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("alone") / "out"
    for code, output in Run(words, out).finish():
        assert code == 0, output[-3000:]
    assert len(curve(out)) == STEPS and len({point[1] for point in curve(out)}) == STEPS
    return out


def complete(words: list[str], out: Path, alone: Path) -> int:
    """Let the run go on to its end and compare it with the one left alone; the step from which it went on."""
    for code, output in Run(words, out).finish():
        assert code == 0, output[-3000:]
    assert curve(out) == curve(alone)
    assert (out / "DONE").read_text() == (alone / "DONE").read_text()
    names = [f"step-{step:08d}" for step in range(STEPS - 2, STEPS + 1)]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["latest", *names]
    said = (out.with_name(f"{out.name}-rank0.txt")).read_text()
    return int(said.partition("resumed from step ")[2].split()[0]) if "resumed from" in said else 0


def test_a_killed_rank_leaves_no_lock() -> None:
    """What a killed rank holds is its own: tqdm's lock, had ranks.py not changed it, would stop all ranks after it."""
    rank = os.fork()
    if not rank:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(rank, 0)
    assert tqdm.get_lock().acquire(timeout=1)
    tqdm.get_lock().release()


def test_killed_at_random_moments(
    strategy: str, words: list[str], alone: Path, tmp_path: Path
) -> None:
    out, draw, whole = (
        tmp_path / "out",
        random.Random(SEED),
        {point[0]: point for point in curve(alone)},
    )
    done, names = dict.fromkeys(MOMENTS, 0), list(MOMENTS)
    for i in range(STRATEGIES.index(strategy), KILLS, len(STRATEGIES)):
        name = names[i % len(names)] if i < len(names) else draw.choice(names)
        seen, pause = MOMENTS[name]
        run = Run(words, out)
        if name == "resume":  # at the latest after the first step, however fast the machine is
            met = (
                run.wait((out / "heartbeat").exists, timeout=draw.random() * pause) or run.running()
            )
        else:
            met = run.goes_on(draw.randrange(1, 4)) and run.wait(partial(seen, out))
            time.sleep(draw.random() * pause)
        run.kill(draw)
        assert met, f"{name}: the run ended first: {run.ranks[0].said.read_text()[-3000:]}"
        done[name] += 1
        for line in lines(out):  # also of steps that will be made again
            assert (line["step"], *(line[key] for key in EXACT)) == whole[line["step"]]
    assert not (out / "DONE").exists(), "the run was over before the last kill"
    went_on = complete(words, out, alone)
    kinds = ", ".join(f"{n} {name}" for name, n in done.items())
    print(f"{strategy}: {sum(done.values())} kills ({kinds}), last from {went_on}")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of 4 MB; without the right to mount, nothing (False)."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "filler"
    try:
        with open(path, "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return path


@pytest.mark.parametrize("strategy", STRATEGIES[:1], scope="module")
def test_disk_full_during_a_save(words: list[str], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with small_disk(out / "checkpoints") as small:
        if small:
            run = Run(words, out)
            assert run.wait(lambda: (out / "checkpoints" / "latest").exists()), run.finish()
            filler = fill(out / "checkpoints")
        else:
            warnings.warn(
                "no right to mount a small disk: files are limited to 100 KB instead", stacklevel=1
            )
            for code, output in Run([*words, "stop_after=2"], out).finish():
                assert code == 0, output[-3000:]
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            run, filler = Run(words, out), out / "nothing"
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        ended = run.finish()
        assert [code for code, _ in ended] == [1, 1], ended
        for _, output in ended:
            assert "could not be written" in output and "the one before is whole" in output, output[
                -3000:
            ]
        assert len(lines(out)) < STEPS and not (out / "DONE").exists()
        filler.unlink(missing_ok=True)
        assert complete(words, out, alone) > 0


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 8
    path.write_bytes(blob)


@pytest.mark.parametrize("strategy", STRATEGIES[-1:], scope="module")
def test_damaged_checkpoints_are_passed_over(words: list[str], alone: Path, tmp_path: Path) -> None:
    out = shutil.copytree(alone, tmp_path / "out")
    (out / "DONE").unlink()
    newest, before = (out / "checkpoints" / f"step-{step:08d}" for step in (STEPS, STEPS - 1))
    for file in newest.iterdir():
        os.truncate(file, file.stat().st_size // 2)
    flip(before / "rank-00001.safetensors")
    assert complete(words, out, alone) == STEPS - 2
    said = (tmp_path / "out-rank0.txt").read_text()
    assert (
        f"{newest} is damaged" in said
        and f"{before} is damaged (the checksum of rank-00001.safetensors" in said
    )
