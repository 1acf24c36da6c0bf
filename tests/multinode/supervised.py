"""tools/launch.py on the head of a laboratory, and what it and its run have written, on a disk or in a store."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from molmo_ds.files import Place
from molmo_ds.testing import lab
from molmo_ds.testing.ranks import Forked

ROOT = Path(__file__).parents[2]


def losses_alone(words: list[str], folder: Path) -> dict[int, float]:
    """Step -> loss of the same run on one rank that nothing happens to."""
    run = Forked([*words, "micro_batch=4", f"out={folder / 'out'}"], folder / "said.txt")
    code, output = run.finish(timeout=400)
    assert code == 0, output[-3000:]
    return lab.losses(folder / "out")


class Supervised:
    """The supervisor of the run in `out`.

    Args:
        hosts: its --hosts.
        words: settings of the run.
        launch: the folder of its own files, as seen from here.
        said: a file for what it says.
        stall: seconds without a step after which it starts the run again.
    """

    def __init__(
        self,
        laboratory: lab.Lab,
        hosts: str,
        words: list[str],
        out: Place,
        launch: Path,
        said: Path,
        stall: int = 10,
    ) -> None:
        self.lab, self.out, self.launch, self.said = laboratory, out, launch, said
        patience = ["--stall", str(stall), "--probe", "3", "--backoff", "0.1"]
        command = [sys.executable, ROOT / "tools/launch.py", "--hosts", hosts, *patience]
        command = laboratory.words("head", [*command, *words, f"out={out}"])
        environment = {**laboratory.environment(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with open(self.said, "wb") as stream:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )

    def events(self, kind: str) -> list[dict]:
        """What it reported of one kind."""
        path = self.launch / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait(self, what: str, seen: Callable[[], bool], timeout: float = 900) -> None:
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
        latest = self.out / "checkpoints" / "latest"
        return int(latest.read_text()[5:]) if latest.is_file() else 0

    def steps(self) -> list[dict]:
        """Whole lines of the log."""
        path = self.out / "log.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

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
