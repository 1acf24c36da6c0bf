"""Keeps a server going: starts the front and the engine, and starts again whichever ends or falls silent.

The front outlives the engine: requests wait in it until the engine is back. It is believed when it says on /health how
many replicas are missing.
"""

import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from molmo_ds.engine.launching.hosts import Host
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.launching.signal_run import MARK
from molmo_ds.engine.launching.ssh import alive
from molmo_ds.engine.launching.supervise import (
    EXPORTED,
    launcher_environment,
    launcher_words,
    signal_hosts,
    wait,
)
from molmo_ds.serve.address import read_address
from molmo_ds.serve.settings import SECRET, FrontSettings, RankSettings, as_word

LOOK_SECONDS = 0.5  # between two looks at /health
END_SECONDS = 5.0  # that a front has to end by itself


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds after which silence is a fault, and what to do then."""

    start: float = 1800.0  # from an engine's start until all its replicas have dialled in
    stall: float = 30.0  # that a replica which was there may be missing
    tries: int = 5  # starts in a row that do not get so far
    backoff: float = 1.0  # pause after the first of them, doubled each time up to a minute


class Watch:
    """One server and the processes that were started for it.

    Args:
        hosts: where the engine's ranks are started; () for one process on this machine.
    """

    def __init__(
        self, front: FrontSettings, rank: RankSettings, hosts: list[Host], patience: Patience
    ):
        self.front = front
        self.rank = rank
        self.hosts = hosts
        self.patience = patience
        # of the launcher's files; names the processes
        self.folder = Path(tempfile.mkdtemp(prefix="molmo-ds-serve-"))
        self.processes: dict[str, subprocess.Popen] = {}
        self.served = False  # whether an engine was there once
        self.began = 0.0  # when the engine was started
        self.seen = 0.0  # when all its replicas were there last; 0 = never
        self.failed = 0  # starts in a row
        self.heard = 0.0  # when the front answered last

    def run(self) -> None:
        """Until a signal ends it; ValueError where it is hopeless."""
        self._start_front()
        self._start_engine()
        while True:
            self._watch_front()
            fault = self._fault()
            if fault is not None:
                self._start_engine_again(fault)

    def stop(self) -> None:
        """End everything that was started."""
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        self._kill_engine()
        if "front" in self.processes:
            wait(self.processes["front"], END_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)  # the secret is in it

    def say(self, sentence: str) -> None:
        """Tell people."""
        print(f"serve: {time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)

    def _watch_front(self) -> None:
        time.sleep(LOOK_SECONDS)
        self._look()
        if self.processes["front"].poll() is not None:
            self._start_front_again()
        elif self.served and time.monotonic() - self.heard > self.patience.stall:
            self.processes["front"].kill()

    def _start_front(self) -> None:
        words = [sys.executable, "-m", "molmo_ds.serve.front"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        process.stdin.write(json.dumps(asdict(self.front)).encode() + b"\n")
        process.stdin.flush()
        self.processes["front"] = process
        self.heard = time.monotonic()

    def _start_front_again(self) -> None:
        if not self.served:
            raise ValueError("The front ended before it served; its sentence above says why.")
        self.say(
            f"the front ended with code {self.processes['front'].returncode}; it is started again"
        )
        self._start_front()
        time.sleep(self.patience.backoff)

    def _start_engine(self) -> None:
        marks = {MARK: str(self.folder), SECRET: self.front.secret}
        environment = launcher_environment(self.folder / "environment", EXPORTED, marks)
        words = ["molmo_ds.serve.rank", as_word(self.rank)]
        if self.hosts:
            words = launcher_words(self.hosts, self.folder / "hostfile", free_port(), words)
        else:
            words = [sys.executable, "-m", *words]
        self.processes["engine"] = subprocess.Popen(
            words, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )
        self.began = time.monotonic()
        self.seen = 0.0

    def _start_engine_again(self, fault: str) -> None:
        if not self.served:
            raise ValueError(f"The engine never served: {fault}; its sentence above says why.")
        self.failed += 1
        if self.failed > self.patience.tries:
            raise ValueError(
                f"{self.patience.tries} starts in a row failed; the last engine: {fault}."
            )
        self.say(f"{fault}; the engine is started again, and unfinished requests wait for it")
        self._kill_engine()
        if self.failed > 1:
            time.sleep(min(60.0, self.patience.backoff * 2 ** (self.failed - 2)))
        if self._wait_for_hosts():
            self._kill_engine()  # a host that was away may have kept its ranks
        self._start_engine()

    def _wait_for_hosts(self) -> bool:
        """Return once all hosts answer by ssh: whether one of them did not at first."""
        said = False
        while missing := set(self.hosts) - set(alive(self.hosts)):
            if not said:
                self.say(
                    f"{missing.pop().name} does not answer; the engine is started when it does"
                )
            said = True
            self._watch_front()
        return said

    def _kill_engine(self) -> None:
        signal_hosts(self.hosts, str(self.folder), signal.SIGKILL)
        if "engine" in self.processes:
            wait(self.processes["engine"], 0)

    def _look(self) -> None:
        """Ask the front how many replicas are missing."""
        host, port = read_address(self.front.address)
        host = "127.0.0.1" if host == "0.0.0.0" else host
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5) as response:
                missing = json.loads(response.read())["missing"]
        except urllib.error.HTTPError:  # 503: all of them
            missing = None
        except OSError:
            return
        self.heard = time.monotonic()
        if missing != 0:
            return
        if not self.served:
            self.say(f"ready at http://{self.front.address}")
        self.served = True
        self.seen = self.heard
        self.failed = 0

    def _fault(self) -> str | None:
        """What is wrong with the engine."""
        code = self.processes["engine"].poll()
        if code is not None:
            return f"the engine ended with code {code}"
        now = time.monotonic()
        if not self.seen and now - self.began > self.patience.start:
            return f"the engine did not dial in within {self.patience.start:.0f} s"
        if self.seen and now - self.seen > self.patience.stall:
            return f"the engine was missing for {now - self.seen:.0f} s"
        return None


def new_secret() -> str:
    """What front and engine of one server share."""
    return secrets.token_hex(32)
