"""Resuming: the newest whole checkpoint, the same on every rank, and this rank's pieces filled from it."""

import logging
from collections.abc import Iterable

import torch

from molmo_ds import files
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.weights.checkpoint import Found, open_checkpoint, steps, what_is_wrong

log = logging.getLogger(__name__)


def newest(folder: str, world: World) -> Found | None:
    """The newest whole checkpoint below `folder`, the same on every rank; None if none was ever finished.

    Damaged ones are passed over with a logged sentence. Raises ValueError if there are only damaged ones.
    """
    candidates = world.agree(lambda: [path.name for path in steps(folder)])
    for name in candidates:
        path = files.place(folder) / name
        wrong = next(
            (w for w in world.gather(what_is_wrong(path, world.rank, world.size)) if w), None
        )
        if wrong is None:
            return open_checkpoint(path)
        if world.rank == 0:
            log.warning("The checkpoint %s is damaged (%s); trying the one before.", path, wrong)
    if candidates:
        raise ValueError(
            f"None of the {len(candidates)} checkpoints in {folder} is whole; delete that folder to start again, "
            "or put a copy of a whole checkpoint there."
        )
    return None


def state_keys(found: Found) -> tuple[set[str], set[str]]:
    """Names of the optimizer's tensors and of its numbers."""
    keys = {key for stored in found.pieces.values() for s in stored for key in s.keys}
    return keys - {"weight"}, set(found.scalars)


@torch.no_grad()
def restore(found: Found, pieces: Iterable[Fragment], names: set[str], optimizer: str) -> None:
    """Fill this rank's pieces. Nothing is left as it was: ValueError if anything has no counterpart.

    Args:
        names: all parameters of the model, on whichever rank.
        optimizer: what optim.name is now.
    """
    if found.optimizer != optimizer:
        raise ValueError(
            f"{found.path} was written with optim.name={found.optimizer}, not {optimizer}."
        )
    if missing := sorted(names ^ set(found.shapes)):
        raise ValueError(
            f"{found.path} belongs to another model: '{missing[0]}' is on one side only."
        )
    expected = {"weight"} | state_keys(found)[0]
    for piece in pieces:
        if tuple(piece.shape) != found.shapes[piece.name]:
            shape = found.shapes[piece.name]
            raise ValueError(
                f"{found.path}: {piece.name} has shape {shape}, and the model has {piece.shape}."
            )
        assert not piece.trains or expected == set(piece.tensors), (
            f"no place for the state of {piece.name}"
        )
        for key, target in piece.tensors.items():
            if not piece.stride:
                target.copy_(found.elements(piece.name, key, piece.start, piece.start + piece.size))
                continue
            flat = found.whole(piece.name, key).view(-1)
            for first, here, length in piece.runs():
                target[here : here + length] = flat[first : first + length]
