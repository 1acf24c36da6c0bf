"""Checks of streams for tools and tests: those of any number of ranks and workers, and whether two are identical."""

import dataclasses
from typing import Any

import torch

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.data.order.loader import Mixture, Steps, check_states, rank_lanes, sequences

States = dict[int, dict[str, Any]]
GlobalBatch = list[Batch]  # the micro-batches of all ranks, in lane order


def replay(
    config: RunConfig,
    mixture: Mixture,
    ranks: int,
    workers: int,
    count: int,
    states: States | None = None,
    start_step: int = 0,
) -> tuple[list[GlobalBatch], States]:
    """`count` global batches as `ranks` ranks with `workers` workers each see them, and the states of all lanes after.

    The ranks run in this process, their workers are real ones that read ahead and are stopped in the middle of it.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=workers))
    streams = []
    for rank in range(ranks):
        lanes = rank_lanes(config, rank, ranks)
        check_states(mixture, lanes, states, start_step)
        streams.append(Steps(config, sequences(config, mixture, lanes, states or {}), lanes))
    batches = []
    after = dict(states or {})
    for _ in range(count):
        batches.append([])
        for stream in streams:
            micro_batches, lane_states = next(stream)
            batches[-1] += micro_batches
            after |= lane_states
    return batches, after


def identical(one: list[GlobalBatch], other: list[GlobalBatch]) -> bool:
    """Whether every tensor of two streams is equal to the bit."""
    if [len(batches) for batches in one] != [len(batches) for batches in other]:
        return False
    mine = [tensor for batches in one for batch in batches for tensor in batch.tensors()]
    others = [tensor for batches in other for batch in batches for tensor in batch.tensors()]
    return len(mine) == len(others) and all(map(torch.equal, mine, others))
