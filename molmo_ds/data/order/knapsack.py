"""Packing by two budgets at once: the samples of a pool whose tokens and crops together are worth most.

The solver is that of allenai/molmo2 (f3cb108, olmo/data/dynamic_packer.py), with which a sample that fits badly may
wait for ever. Here the oldest is taken in every PATIENCE-th sequence, so that none waits for more than PATIENCE *
pool_size sequences.
"""

import numpy as np

UNITS = 512  # tokens are counted in units of 1 / UNITS of a sequence
PATIENCE = 4


def most_valuable(
    sizes: list[list[int]], tokens: int, crops: int, crop_weight: float, with_oldest: bool = False
) -> list[int]:
    """Indices of the samples, given as [tokens, crops] from old to new, that are worth most and fit together.

    A sample is worth tokens + crop_weight * crops. One that fills a sequence by itself is taken at once, alone.
    `with_oldest` takes the first and the best of the others. Deterministic. The reference rounds a sequence's units up,
    so that two samples may be a token too long together where `tokens` is no multiple of the unit; here they are not.
    """
    unit = max(1, tokens // UNITS)
    room = tokens // unit
    units = [-(-length // unit) for length, _ in sizes]
    # the oldest comes first where it is asked for, or full sequences could make it wait for ever
    first = units[:1] if with_oldest else units
    whole = [index for index, length in enumerate(first) if length >= room]
    if whole:
        return whole[:1]
    worth = [length + crop_weight * cost for length, cost in sizes]
    costs = [cost for _, cost in sizes]
    if not with_oldest:
        return _solve(units, costs, worth, room, crops)
    others = _solve(units[1:], costs[1:], worth[1:], room - units[0], crops - costs[0])
    return [0, *(index + 1 for index in others)]


def _solve(
    units: list[int], costs: list[int], worth: list[float], room: int, spare: int
) -> list[int]:
    """Indices, ascending, of what fits into `room` units and `spare` crops and is worth most."""
    best = np.zeros((room + 1, spare + 1), np.float32)  # of those looked at, by the room there is
    taken = []
    for length, cost, value in zip(units, costs, worth):
        better = best.copy()
        if length <= room and cost <= spare:
            with_it = best[: room + 1 - length, : spare + 1 - cost] + np.float32(value)
            np.maximum(better[length:, cost:], with_it, out=better[length:, cost:])
        taken.append(better != best)
        best = better
    chosen = []
    for index in reversed(range(len(units))):
        if taken[index][room, spare]:
            chosen.append(index)
            room -= units[index]
            spare -= costs[index]
    return sorted(chosen)
