"""Resuming: the newest whole checkpoint, the same on every rank, and this rank's pieces filled from it."""

import logging
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from molmo_ds import files
from molmo_ds.engine.filling import Filling
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.files import Place
from molmo_ds.weights.blocks import Damaged
from molmo_ds.weights.checkpoint import Found, open_checkpoint, steps, what_is_wrong

log = logging.getLogger(__name__)


def there(folder: str, world: World) -> list[Place]:
    """The checkpoints below `folder`, newest first, whole or not; the same on every rank."""
    names = world.broadcast([path.name for path in steps(folder)] if world.rank == 0 else None)
    return [files.place(folder) / name for name in names]


def opened(path: Place, world: World) -> Found:
    """A checkpoint, of which rank 0 reads what is where and tells the others.

    Raises Damaged on every rank if a file is missing or has another size. Numbers are compared with their checksums
    when they are read; those of format 1, which has checksums of whole files only, are compared here.
    """
    if wrong := world.first_said(what_is_wrong(path, world.rank, world.size)):
        raise Damaged(path, wrong)

    def read() -> Found:
        found = open_checkpoint(path)
        # it is kept in `found`, and sent with it
        _ = found.lanes
        return found

    return world.agree(read)


def passed_over(error: Damaged, world: World) -> None:
    """Say that a checkpoint is damaged."""
    if world.rank == 0:
        log.warning(
            "The checkpoint %s is damaged (%s); trying the one before.", error.folder, error.reason
        )


def none_whole(folder: str, count: int) -> ValueError:
    """The error where every one of the checkpoints is damaged."""
    return ValueError(
        f"None of the {count} checkpoints in {folder} is whole; delete that folder to start again, "
        "or put a copy of a whole checkpoint there."
    )


@torch.no_grad()
def restore(
    found: Found, pieces: Iterable[Fragment], names: set[str], optimizer: str, filling: Filling
) -> None:
    """Fill this rank's pieces. Nothing is left as it was: ValueError if anything has no counterpart.

    Args:
        names: all parameters of the model, on whichever rank.
        optimizer: what optim.name is now.

    Raises Damaged on every rank if what one of them reads is not as it was written.
    """
    if found.optimizer != optimizer:
        raise ValueError(
            f"{found.path} was written with optim.name={found.optimizer}, not {optimizer}."
        )
    if missing := sorted(names ^ set(found.shapes)):
        raise ValueError(
            f"{found.path} belongs to another model: '{missing[0]}' is on one side only."
        )
    expected = found.pieces.keys
    for piece in pieces:
        assert not piece.trains or expected >= set(piece.tensors), (
            f"no place for the state of {piece.name}"
        )
        # in one order: ranks that hold copies send each other what they read, and a set's order is a process's own
        for key in sorted(piece.tensors):
            filling.fill(piece, key, partial(_elements, found, piece, key))
    filling.end()


def _elements(found: Found, piece: Fragment, key: str, first: int, last: int) -> Tensor:
    shape = found.shapes[piece.name]
    if tuple(piece.shape) != shape:
        raise ValueError(
            f"{found.path}: {piece.name} has shape {shape}, and the model has {piece.shape}."
        )
    return found.elements(piece.name, key, first, last)
