"""Seconds of a step by phase and a torch profiler trace, for the steps in `profile_steps`; other steps hook nothing."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from molmo_ds.config import RunConfig
from molmo_ds.model.molmo import layer_list
from molmo_ds.stores.mirror import working_folder

PHASES = (
    "data",
    "vision",
    "connector",
    "decoder",
    "loss",
    "backward",
    "optimizer",
    "other",
    "communication",
)
CLOSED = ("backward", "optimizer")  # what is recomputed inside them is theirs


class Clock:
    """Seconds by phase, each counted once: an inner phase's time is not its outer one's. On a GPU each border waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stack = ["other"]
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.since = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._add()
        if self.stack[-1] not in CLOSED:
            self.stack.append(phase)

    def leave(self) -> None:
        """It ends."""
        self._add()
        if self.stack[-1] not in CLOSED:
            self.stack.pop()

    def _add(self) -> None:
        now = self._now()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def around(self, phase: str, function: Callable) -> Callable:
        """`function`, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            depth = len(self.stack)
            self.enter(phase)
            try:
                return function(*arguments, **options)
            finally:
                self._add()
                del self.stack[depth:]

        return timed


def phase_of(row: str) -> str:
    """The phase to which a row of `layer_list` belongs; the head's forward computes the loss and its gradients."""
    first = row.partition(".")[0]
    return {"embed": "decoder", "layers": "decoder", "head": "loss"}.get(first, first)


@contextlib.contextmanager
def watch(engine: Any, config: RunConfig, waited: float) -> Iterator[dict[str, float]]:
    """Time the step taken inside the block, if it is one of `profile_steps`; afterwards the mapping holds phase/NAME.

    Phases exclude each other and sum up to the step (with `waited`, the seconds for data); "communication" is what
    collectives took inside them, overlapping or not. The trace goes to out/profile, one file per rank.
    """
    from molmo_ds.engine import deepspeed_0_19

    times: dict[str, float] = {}
    step = engine.step + 1
    world = engine.world
    if step not in config.profile_steps:
        yield times
        return
    clock = Clock(world.device)
    inside = dict(engine.model.named_modules())
    on_gpu = world.device.type == "cuda"
    with contextlib.ExitStack() as stack:
        for name, *_ in layer_list(config.model):
            if name in inside:
                hooks = (
                    inside[name].register_forward_pre_hook(
                        _entering(clock, phase_of(name)), prepend=True
                    ),
                    inside[name].register_forward_hook(lambda *_: clock.leave()),
                )
                for hook in hooks:
                    stack.callback(hook.remove)
        for owner, name, phase in (
            (torch.autograd, "backward", "backward"),
            (engine, "clip_gradients", "optimizer"),
            (engine.engine, deepspeed_0_19.MODEL_STEP, "optimizer"),
        ):
            plain = getattr(owner, name)
            setattr(owner, name, clock.around(phase, plain))
            stack.callback(setattr, owner, name, plain)
        kinds = [torch.profiler.ProfilerActivity.CPU] + [
            torch.profiler.ProfilerActivity.CUDA
        ] * on_gpu
        trace = stack.enter_context(torch.profiler.profile(activities=kinds))
        clock.since = clock._now()
        yield times
        clock._add()
    spent = (
        e.device_time_total if on_gpu else e.cpu_time_total
        for e in trace.events()
        if collective(e.name, on_gpu)
    )
    clock.seconds |= {"communication": sum(spent) / 1e6, "data": waited}
    times |= {f"phase/{name}": seconds for name, seconds in clock.seconds.items()}
    folder = working_folder(config.out, config.scratch) / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(folder / f"step-{step:08d}-rank-{world.rank:05d}.json"))


def collective(name: str, on_gpu: bool) -> bool:
    """Whether an event of the profiler is a collective: NCCL's kernels on a GPU, gloo's calls on a CPU."""
    return name.startswith("ncclDevKernel" if on_gpu else "gloo:")


def _entering(clock: Clock, phase: str) -> Callable:
    return lambda *_: clock.enter(phase)
