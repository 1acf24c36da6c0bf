"""What a start, a save and a resume of many ranks may cost; tools/bench/scale.py counts whole models."""

import math
from dataclasses import replace

import pytest

from molmo_ds import presets
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.scale.case import Case
from molmo_ds.weights.checksums import BLOCK

RANKS = 64


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """7B-D's widths with two layers of each tower, or all of it by hand."""
    model = presets.get("molmo_7b_d")
    if not EVERYTHING:
        text = replace(model.text, num_hidden_layers=2)
        vision = replace(model.vision, num_hidden_layers=2, feature_layers=(-1, -2))
        model = replace(model, text=text, vision=vision)
    return Case(model, RANKS, tmp_path_factory.mktemp("scale"))


def test_weights_are_read_once_over_all_ranks(case: Case) -> None:
    assert 1 <= case.start(case.source) <= 1.1
    assert 1 <= case.start(case.source, stage=0) <= 1.1
    assert 1 <= case.start(case.same) <= 1.1


def test_a_rank_draws_what_it_keeps(case: Case) -> None:
    assert 1 <= case.drawn() <= 1.1


def test_the_index_is_small(case: Case) -> None:
    """At most 20 bytes a piece: 1,024 ranks have 1.4 million of 72B, and 20 MB are allowed."""
    assert case.index <= 20e6 / 1.4e6 * len(case.found.pieces.columns["start"]) + 20_000


@pytest.mark.parametrize("before", [RANKS, RANKS * 3 // 4])
def test_a_resume_reads_the_state_once(case: Case, before: int) -> None:
    counts = case.resume(before)
    # headers of the tensor files are part of the state, and nobody reads them again
    assert 0.999 <= counts.bytes / case.state <= 1.2
    # its own file, or those of two or three neighbours
    assert counts.opens / RANKS <= 4
    # the largest piece of a rank, and a block at either end
    piece = max(-(-math.prod(shape) // RANKS) for shape in case.network.shapes.values())
    assert counts.largest <= 4 * piece + 2 * BLOCK
