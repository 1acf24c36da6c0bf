"""A run on a laboratory of two hosts, by the real deepspeed launcher under tools/launch.py, through every fault."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from molmo_ds.testing import lab

ROOT = Path(__file__).parents[2]
DETECTED = 30  # seconds from a fault to its detection

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run")


class Supervised:
    """tools/launch.py on the laboratory's head, and what it and its run have written."""

    def __init__(self, laboratory: lab.Lab, hosts: str, words: list[str], out: Path) -> None:
        self.lab, self.out = laboratory, out
        patience = ["--stall", "10", "--probe", "3", "--backoff", "0.1"]
        command = [sys.executable, ROOT / "tools/launch.py", "--hosts", hosts, *patience]
        command = laboratory.words("head", [*command, *words, f"out={out}"])
        environment = {**laboratory.environment(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        self.said = out.with_suffix(f".{hosts.replace(':', '-')}.txt")
        with open(self.said, "wb") as stream:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )

    def events(self, kind: str) -> list[dict]:
        """What it reported of one kind."""
        path = self.out / "launch" / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait(self, what: str, seen: Callable[[], bool], timeout: float = 400) -> None:
        """Until it is seen; AssertionError if the supervisor ends before, or it takes too long."""
        deadline = time.monotonic() + timeout
        while not seen():
            ended = self.process.poll() is not None and not seen()
            late = time.monotonic() > deadline
            assert not ended and not late, (
                f"{what} is not seen in {timeout} s:\n{self.said.read_text()[-4000:]}"
            )
            time.sleep(0.02)

    def wait_for_steps(self, starts: int) -> None:
        """Until the try of that number has made two steps and saved one."""
        self.wait(f"start {starts}", lambda: len(self.events("start")) >= starts)
        began = self.events("start")[starts - 1]["time"]
        self.wait(
            f"steps of start {starts}",
            lambda: len([s for s in self.steps() if s["time"] > began]) >= 2,
        )
        first = next(s["step"] for s in self.steps() if s["time"] > began)
        self.wait(f"a checkpoint of start {starts}", lambda: self.saved() >= first)

    def saved(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        latest = self.out / "checkpoints/latest"
        return int(latest.read_text()[5:]) if latest.exists() else 0

    def steps(self) -> list[dict]:
        """Whole lines of the log."""
        path = self.out / "log.jsonl"
        return (
            [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            if path.exists()
            else []
        )

    def fault(self, make: Callable[[], object]) -> tuple[str, float]:
        """Make a fault; (the reason that the supervisor gives, seconds until it gave it)."""
        before = len(self.events("fault"))
        began = time.time()
        make()
        self.wait("the fault", lambda: len(self.events("fault")) > before)
        fault = self.events("fault")[before]
        return fault["reason"], fault["time"] - began

    def stop(self) -> int:
        """What a scheduler does; the exit code."""
        # self.process is nsenter, in front of it
        self.lab.kill("head", ("tools/launch.py", "--hosts"), signal.SIGTERM)
        return self.process.wait(200)

    def end(self) -> None:
        """Whatever happened; the laboratory ends the rest."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def rank_of(laboratory: lab.Lab, host: str, number: signal.Signals) -> Callable[[], object]:
    """Signal one rank on a host."""
    return lambda: laboratory.kill(host, ("molmo_ds.train", "--local_rank="), number)


def test_a_run_survives_what_happens_to_hosts(
    laboratory: lab.Lab, words: list[str], alone: dict[int, float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: dict[str, tuple[str, float]] = {}
    run = Supervised(laboratory, "host1:2,host2:2", words, out)
    try:
        run.wait_for_steps(1)
        seen["link cut"] = run.fault(lambda: laboratory.cut("host2"))
        run.wait_for_steps(2)
        assert [event["hosts"] for event in run.events("start")] == ["host1:2,host2:2", "host1:2"]
        laboratory.mend("host2")
        assert run.stop() == 128 + signal.SIGTERM, run.said.read_text()[-3000:]
        stopped = run.steps()[-1]["step"]
        assert (
            run.events("stopping")
            and (out / "checkpoints/latest").read_text() == f"step-{stopped:08d}\n"
        )
        # the host that was lost is taken back
        run = Supervised(laboratory, "host1:1,host2:1", words, out)
        run.wait_for_steps(3)
        seen["killed"] = run.fault(rank_of(laboratory, "host2", signal.SIGKILL))
        run.wait_for_steps(4)
        seen["stopped"] = run.fault(rank_of(laboratory, "host1", signal.SIGSTOP))
        run.wait_for_steps(5)
        seen["powered off"] = run.fault(lambda: laboratory.power_off("host1"))
        run.wait("the end", lambda: bool(run.events("done")))
        assert run.process.wait(60) == 0
    finally:
        run.end()
    print({name: f"{reason}, {seconds:.1f} s" for name, (reason, seconds) in seen.items()})
    saved = [event["step"] for event in run.events("fault")]
    # each try went on from a checkpoint of the one before
    assert 0 < saved[0] < saved[1] < saved[2] < saved[3], saved
    last = run.events("start")[2:]
    assert [event["hosts"] for event in last] == ["host1:1,host2:1"] * 3 + ["host2:1"]
    assert all(seconds < DETECTED for _, seconds in seen.values()), seen
    assert seen["stopped"][0].startswith("no step for")  # nothing else tells
    steps = len(alone)
    assert [line["step"] for line in run.steps()] == list(range(1, steps + 1))
    assert lab.losses(out) == pytest.approx(alone, abs=1e-5) and alone[steps] < alone[1] - 0.3
    assert json.loads((out / "DONE").read_text())["step"] == steps
