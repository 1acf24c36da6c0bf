"""Ranks that are made up make the collectives of the table, the last of 1,024 too; tools/bench counts whole models."""

import json
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch

from molmo_ds.testing import collectives, tables
from molmo_ds.testing.scripts import load

scale = load("tools/bench", "scale_collectives")
SHAPES = [(3, 5), (7,), (1,), (64, 2)]  # of which some ranks of eight have nothing


@pytest.mark.parametrize("strategy", ["zero3", "zero3_hpz"])
def test_the_last_of_1024_ranks_does_as_the_table_says(strategy: str) -> None:
    case = scale.Case(strategy, "qwen2", 1024, 2)
    calls = scale.counted(replace(case, rank=1023))
    scale.check(case, calls, {})
    [row] = [
        r for r in tables.read("collectives of the micro model") if r[:2] == [strategy, "1,024"]
    ]
    assert scale.row(case, scale.tally(calls)) == f"| {' | '.join(row)} |"


def test_what_is_not_theory_or_another_order_is_an_error() -> None:
    case = scale.Case("zero0", "qwen2", 2, 1)
    [(least, _)] = scale.by_theory(case).values()
    calls = [["all_reduce", least, 2], ["all_reduce", 8, 2]]
    others = {}
    scale.check(case, calls, others)
    with pytest.raises(AssertionError, match="other calls than on fewer ranks"):
        scale.check(replace(case, ranks=4), calls[:1], others)
    with pytest.raises(AssertionError, match="all_reduce of"):
        scale.check(case, calls[1:], {})


def reductions(rank: int, end: Connection) -> None:
    """Calls and results of DeepSpeed's own reduction of some gradients, and of the harness's."""
    collectives.pretend(8, rank)
    from deepspeed.runtime.comm.coalesced_collectives import reduce_scatter_coalesced

    found = []
    for reduce in (reduce_scatter_coalesced, collectives._scattered):
        with collectives.Recorder() as recorder:
            parts = reduce([torch.ones(shape) for shape in SHAPES])
        found.append(([str(call) for call in recorder.calls], [list(x.shape) for x in parts]))
    end.send(json.dumps(found))
    end.close()
    os._exit(0)


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_a_reduction_is_deepspeeds(rank: int) -> None:
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=reductions, args=(rank, there))
    child.start()
    there.close()
    deepspeeds, ours = json.loads(here.recv())
    child.join()
    assert ours == deepspeeds and deepspeeds[0]
