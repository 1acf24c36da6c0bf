"""The map of ranks: places, ranks along axes, and one owner of whatever several ranks hold."""

import itertools

import pytest
import torch.distributed as dist

from molmo_ds.engine.grid import AXES, COPIES, LOSSES, Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.parallel import grid_of
from molmo_ds.engine.strategy import parse
from molmo_ds.testing.ranks import run_ranks

SIZES = {"stage": 2, "data": 3, "sequence": 2, "tensor": 2}


def test_the_tensor_axis_is_the_fastest() -> None:
    places = [[Grid(SIZES, rank).place(axis) for axis in AXES] for rank in range(24)]
    assert places == [list(p) for p in itertools.product(range(2), range(3), range(2), range(2))]


def test_ranks_along_axes() -> None:
    here = Grid(SIZES, 9)  # stage 0, data 2, sequence 0, tensor 1
    assert here.along("tensor") == (8, 9)
    assert here.along("sequence") == (9, 11)
    assert here.along("data") == (1, 5, 9)
    assert here.along("stage") == (9, 21)
    assert here.along(*COPIES) == (1, 3, 5, 7, 9, 11)
    assert here.along(*LOSSES) == tuple(range(1, 24, 2))
    assert here.along("tensor", of=20) == (20, 21)
    assert here.along(*AXES) == tuple(range(24)) and here.size(*AXES) == 24
    assert here.group(*AXES) is None
    with pytest.raises(AssertionError, match="no group"):
        here.group("data")


@pytest.mark.parametrize(
    "copies", [axes for n in range(5) for axes in itertools.combinations(AXES, n)], ids=str
)
def test_one_rank_owns_what_several_hold(copies: tuple[str, ...]) -> None:
    grids = [Grid(SIZES, rank) for rank in range(24)]
    owners: dict[tuple[int, ...], int] = {}
    for here in grids:
        ranks = here.along(*copies)
        owners[ranks] = owners.get(ranks, 0) + here.first(copies)
    assert set(owners.values()) == {1}


def test_ranks_that_share_the_decoder_drop_the_same() -> None:
    assert [Grid(SIZES, rank).stream for rank in range(6)] == [0, 0, 1, 1, 2, 2]


def made(world: World, blocks: list[dict]) -> list[dict]:
    """The ranks of each group of a strategy's grid."""
    out = []
    for block in blocks:
        here = grid_of(parse("x", block), world)
        groups = {
            "data": here.group("data"),
            "copies": here.group(*COPIES),
            "losses": here.group(*LOSSES),
        }
        groups |= {axis: here.group(axis) for axis in ("sequence", "tensor") if here.size(axis) > 1}
        out.append(
            {name: group and dist.get_process_group_ranks(group) for name, group in groups.items()}
        )
    return out


def test_groups() -> None:
    """Of rank 2 of 4; None are all ranks, whose group exists already."""
    shared = {"molmo_ds": {"engine": "sequence", "sequence_parallel_size": 2}}
    split = {"tensor_parallel": {"autotp_size": 2}}
    alone, sequence, tensor = run_ranks(made, 4, [{}, shared, split])[2]
    assert alone == {"data": None, "copies": None, "losses": None}
    assert sequence == {"data": [0, 2], "copies": None, "losses": None, "sequence": [2, 3]}
    assert tensor == {"data": [0, 2], "copies": [0, 2], "losses": [0, 2], "tensor": [2, 3]}
    assert run_ranks(made, 2, [shared])[1] == [
        {"data": [1], "copies": None, "losses": None, "sequence": [0, 1]}
    ]
