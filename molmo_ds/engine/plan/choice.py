"""strategy=auto: the cheapest file of ds_configs whose planned bytes fit on every rank, and one line that says why.

Only rank 0 plans, from the least memory that any rank has, and tells the others: the choice is the same everywhere.
"""

import logging
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.plan.plan_memory import plan
from molmo_ds.engine.strategy import AUTO, Strategy, read_strategy, refusals
from molmo_ds.stores import same_run

log = logging.getLogger("molmo_ds")
RESERVED = 2e9  # bytes of a GPU for CUDA's context and NCCL, which the plan does not know
MARGIN = 1.1  # the plan is within a tenth of what was measured (tests/test_plan_memory.py)
# The cheapest first, by what a step costs beside its products of matrices.
ORDER = (
    "zero1",  # gradients and weights cross the network once a step
    "zero2",  # gradients once a micro-step
    "zero2_ep",  # the same, and each token's row travels to its experts and back
    "zero3_ep",  # weights are gathered layer by layer, twice a micro-step, which costs the host too
    "zero3",  # the same with every expert
    "zero3_sp_ep",  # the same, and half the sequences at a time
    "zero3_sp",
    "zero3_ep_tp",  # the same, and activations are summed over ranks in every layer
    "zero3_tp",
    "zero3_ep_offload",  # weights and state come from the host
    "zero3_offload",  # the same with every expert
    "zero3_tp_offload",  # and activations are summed over ranks in every layer
)
ALONE = ("zero0", "zero3_offload")  # of one rank: ZeRO's second copy of the weights saves nothing
LEFT_OUT = {  # why memory alone does not choose them
    "zero0": "on several ranks it sends what zero1 sends, and holds more",
    "zero3_hpz": "it is for a slow network between nodes, and holds more than zero3",
    "zero3_nvme": "it needs a device to be named",
    "pipe_zero1": "it is for a slow network, and holds more than zero3",
    "pipe_dualpipev": "it is for a slow network, and holds more than pipe_zero1",
    "pipe_zero1_ep": "it is for a slow network, and holds more than zero3_ep",
}


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes that each rank can have."""

    device: float
    host: float  # for what is offloaded; on the CPU the device's memory is the host's
    on_gpu: bool = True

    @property
    def usable(self) -> float:
        """Bytes of the device that a plan may fill."""
        return self.device / MARGIN


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy that can run, with its planned bytes on the fullest rank."""

    name: str
    device: float
    host: float
    fits: bool = False

    @property
    def path(self) -> str:
        """What `strategy=` takes."""
        return f"ds_configs/{self.name}.json"

    @property
    def held(self) -> str:
        """The bytes in words."""
        host = f" and {self.host / 1e9:.1f} GB of the host" if self.host else ""
        return f"{self.device / 1e9:.1f} GB{host}"

    def excess(self, room: Room) -> float:
        """How much too large it is, as a factor."""
        return max(self.device / room.usable, self.host / room.host if self.host else 0.0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A strategy's path, and why it was taken."""

    path: str
    sentence: str


def settled(config: RunConfig, world: World, folder: Path) -> RunConfig:
    """The run with the strategy that it gets, which rank 0 says; ValueError on every rank where nothing fits.

    Args:
        folder: of the run; one that is there already keeps its strategy, as long as that still fits.
    """
    if config.strategy != AUTO:
        return config
    room = measured(world)
    choice = world.agree(lambda: choose(config, world.size, room, _earlier(config, folder)))
    log.info(choice.sentence)
    return replace(config, strategy=choice.path)


def measured(world: World) -> Room:
    """The least that any rank has, on every rank."""
    on_gpu = world.device.type == "cuda"
    device = torch.cuda.get_device_properties(world.device).total_memory if on_gpu else 0
    seen = world.gather((socket.gethostname(), psutil.virtual_memory().total, device))
    ranks = Counter(name for name, *_ in seen)
    host = min(total / ranks[name] for name, total, _ in seen)
    if not on_gpu:
        return Room(device=host, host=0.0, on_gpu=False)
    return Room(device=min(bytes_ for *_, bytes_ in seen) - RESERVED, host=host)


def choose(config: RunConfig, world: int, room: Room, earlier: str | None = None) -> Choice:
    """The first of ORDER that fits on `world` ranks, or `earlier` where that does.

    Raises ValueError, naming the nearest, where nothing fits, and the first refusal where nothing can run.
    """
    kind = "GPU" if room.on_gpu else "rank"
    where = f"on each of {world} {kind}s" if world > 1 else f"on one {kind}"
    if earlier is not None and (kept := _again(earlier, config, world, room)):
        told = f"{earlier} as before, {kept.device / 1e9:.1f} GB planned"
        return Choice(
            path=earlier,
            sentence=f"strategy={AUTO}: {told} of {room.usable / 1e9:.1f} GB usable {where}.",
        )
    refused: list[Candidate] = []
    for one in candidates(config, world, room):
        if one.fits:
            told = f"{one.path}, {one.device / 1e9:.1f} GB planned"
            told += f" of {room.usable / 1e9:.1f} GB usable {where}"
            told += f"; refused: {_listed(refused)}" if refused else ", the first that was tried"
            return Choice(path=one.path, sentence=f"strategy={AUTO}: {told}.")
        refused.append(one)
    nearest = min(refused, key=lambda one: one.excess(room))
    raise ValueError(
        f"strategy={AUTO}: nothing fits into {room.usable / 1e9:.1f} GB usable {where}; the nearest is "
        f"{nearest.path} with {nearest.held}. Set activation_checkpointing=full, a smaller micro_batch or "
        "data.sequence_length, or give more ranks (docs/guides/when-it-does-not-fit.md)."
    )


def candidates(config: RunConfig, world: int, room: Room) -> Iterator[Candidate]:
    """What can run on `world` ranks, the cheapest first; ValueError, the first refusal, where nothing can."""
    for strategy in runnable(config, world):
        yield _planned(strategy, config, world, room)


def runnable(config: RunConfig, world: int) -> list[Strategy]:
    """The strategies of ORDER that are not refused, whether or not they fit; ValueError as of `candidates`."""
    found = []
    why = None
    for name in ALONE if world == 1 else ORDER:
        strategy = read_strategy(f"ds_configs/{name}.json")
        try:
            refusals.refuse(strategy, config, world)
            found.append(strategy)
        except ValueError as error:
            why = why or error
    if not found and why is not None:
        raise ValueError(f"strategy={AUTO}: nothing can run on {world} ranks: {why}")
    return found


def refuse(config: RunConfig, world: int) -> None:
    """As refusals.refuse of the run's own strategy, whether it is a file or `auto`."""
    if config.strategy == AUTO:
        runnable(config, world)
    else:
        refusals.refuse(read_strategy(config.strategy), config, world)


def _planned(strategy: Strategy, config: RunConfig, world: int, room: Room) -> Candidate:
    stages = plan(config, strategy, world, room.on_gpu)
    device = max(stage.peak for stage in stages)
    host = max(stage.host for stage in stages)
    if not room.on_gpu:
        device, host = device + host, 0.0
    made = Candidate(name=strategy.name, device=device, host=host)
    return replace(made, fits=made.excess(room) <= 1)


def _again(path: str, config: RunConfig, world: int, room: Room) -> Candidate | None:
    # the strategy of the same run before, if it can run here and fits
    try:
        strategy = read_strategy(path)
        refusals.refuse(strategy, config, world)
    except ValueError:
        return None
    made = _planned(strategy, config, world, room)
    return made if made.fits else None


def _earlier(config: RunConfig, folder: Path) -> str | None:
    # the strategy of a run that this one continues
    path = (same_run.earlier(config, folder) or {}).get("strategy")
    return path if path not in (AUTO, "accelerate") else None


def _listed(refused: list[Candidate]) -> str:
    return ", ".join(f"{one.name} {one.held}" for one in refused)
