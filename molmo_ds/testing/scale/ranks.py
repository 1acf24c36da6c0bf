"""Stand-in ranks: rank r of N by itself, with the pieces that DeepSpeed would give it, without memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from molmo_ds.config import RunConfig
from molmo_ds.engine import optim
from molmo_ds.engine.engine import without_memory
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.grid import COPIES, Grid
from molmo_ds.engine.launch import World

STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}


@contextmanager
def stand_in(rank: int, size: int) -> Iterator[tuple[World, Grid]]:
    """Rank `rank` of `size`, whose collectives return at once with what it gave."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield World(rank, 0, size, torch.device("cpu")), Grid({"data": size}, rank)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Network:
    """Names and shapes of a run's parameters, and which of them learn."""

    config: RunConfig
    shapes: dict[str, tuple[int, ...]]
    frozen: set[str]

    @classmethod
    def of(cls, config: RunConfig) -> "Network":
        """The network of a run."""
        model = without_memory(config)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        return cls(config, shapes, optim.frozen_names(model, config.optim, config.lora))

    @property
    def numbers(self) -> int:
        """Its parameters, counted one by one."""
        return sum(map(math.prod, self.shapes.values()))

    def pieces(self, stage: int, rank: int, size: int, state: bool = True) -> Iterator[Fragment]:
        """The fp32 pieces of a rank under ZeRO-3, or under ZeRO-0; with the optimizer's state, once there is any."""
        for name, shape in self.shapes.items():
            count = math.prod(shape)
            length = -(-count // size) if stage == 3 else count
            start = rank * length if stage == 3 else 0
            length = min(length, count - start)
            if length <= 0:
                continue
            learns = name not in self.frozen
            keys = STATE[self.config.optim.name] if learns and state else ()
            tensors = {key: torch.empty(length, device="meta") for key in ("weight", *keys)}
            scalars = {"step": 1.0} if keys else {}
            copies = () if stage == 3 else COPIES
            owned = stage == 3 or rank == 0
            yield Fragment(name, shape, start, tensors, scalars, learns, copies, owned)
