"""Runs a function on several ranks: forked with the imports already made, which costs seconds less than a launcher."""

import gc
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what building an engine imports, once, before the fork
import accelerate
import deepspeed.runtime.zero.stage3  # noqa: F401
import torch
import torch._inductor.compile_fx
import torch.utils.tensorboard
import transformers.integrations  # noqa: F401
from tqdm import tqdm

import molmo_ds.data.order.loader
import molmo_ds.engine.engine
import molmo_ds.monitor.metrics  # noqa: F401
from molmo_ds import train
from molmo_ds.engine import launch
from molmo_ds.engine.launch import World
from molmo_ds.engine.launching.ports import free_port

torch.set_num_threads(1)
# torch makes a new pool of threads at its first use after a fork: two threads (autograd's, gloo's) that race for it
# stop with "Invalid thread pool!" (133 of 400 forks with eight threads), so the child asks for it before it has any
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))
# tqdm's own is one for all forks: a rank killed with it would stop all later ones
tqdm.set_lock(threading.RLock())
# for launch.start: threads of several ranks that wait by spinning
os.environ.setdefault("OMP_NUM_THREADS", "1")


def run_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 120
) -> list[Any]:
    """[function(world, *args) of each rank]; AssertionError with the first traceback, or when the time is over."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(function, rank, ranks, port, args, Path(folder)) for rank in range(ranks)]
        deadline = time.monotonic() + timeout
        waiting = set(children)
        failed = False
        while waiting and time.monotonic() < deadline and not failed:
            for child in list(waiting):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    waiting.discard(child)
                    failed = failed or status != 0
            time.sleep(0.02)
        time.sleep(0.3 if failed else 0)
        for child in waiting:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not errors, errors[0]
        assert not waiting and not failed, (
            f"{ranks} ranks did not finish within {timeout} s or died"
        )
        return [
            pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(ranks)
        ]


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment that a launcher gives a rank."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in values.items()}


def forget_accelerate() -> None:
    """Drop what accelerate knows of this process: a Trainer that ran before the fork made it one of one rank."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Forked:
    """`molmo_ds.train.main(arguments)` in a forked process, as python or a launcher would run it."""

    def __init__(
        self, arguments: list[str], said: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.said = said
        self.code = None
        self.pid = os.fork()
        if self.pid:
            return
        gc.freeze()
        forget_accelerate()
        os.environ.update(environment or {})
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 (pytest holds the old ones)
        logging.getLogger().handlers.clear()
        os.setpgid(0, 0)
        try:
            train.main(arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)

    def running(self) -> bool:
        """Whether it has not ended."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is None

    def finish(self, timeout: float = 120) -> tuple[int, str]:
        """(exit code, output); AssertionError and its end if it takes longer."""
        deadline = time.monotonic() + timeout
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        late = self.running()
        if late:
            self.kill(signal.SIGKILL)
        assert not late, f"still running after {timeout} s:\n{self.said.read_text()[-3000:]}"
        return self.code, self.said.read_text()

    def kill(self, number: int) -> None:
        """Send a signal; after SIGKILL wait for the end."""
        if self.running():
            os.kill(self.pid, number)
        while number == signal.SIGKILL and self.running():
            time.sleep(0.01)


def _fork(
    function: Callable[..., Any], rank: int, ranks: int, port: int, args: tuple, folder: Path
) -> int:
    child = os.fork()
    if child:
        return child
    gc.freeze()  # DeepSpeed collects garbage for each engine; what was imported is none
    forget_accelerate()
    try:
        os.environ.update(rank_environment(rank, ranks, port))
        world: World = launch.start(timeout_seconds=60)
        result = function(world, *args)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        world.barrier()
        os._exit(0)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        # whatever happens: a rank that continued would run the rest of the tests once more
        os._exit(1)
