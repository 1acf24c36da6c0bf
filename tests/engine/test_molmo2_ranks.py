"""Molmo2 trains under each kind of parallelism as one plain process does, whatever each rank shows.

Some ranks have a picture whose windows join crops, others several, a video or text alone.
"""

from dataclasses import replace

import pytest
import torch

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.data.order.packing import merge
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.engine.shares.picture_shares import Deal
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic, videos
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import Run, difference, family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks

STEPS = 2
CASES = [  # decoder, strategy, micro-batch
    ("q3", "zero3_sp", 2),
    ("q3", "pipe_zero1", 2),
    ("o3", "zero3_tp", 4),
]
if EVERYTHING:
    CASES += [
        ("q3", "zero3_tp", 1),
        ("o3", "zero3", 1),
        ("o3", "zero3_tp", 2),
        ("o3", "pipe_dualpipev", 1),
    ]
Case = tuple[str, str, int]


def run_of(case: Case) -> RunConfig:
    name, strategy, micro_batch = case
    base = synthetic.config(
        model=family(name), strategy=f"ds_configs/{strategy}.json", micro_batch=micro_batch
    )
    return replace(base, max_steps=STEPS, check_collectives=True)


def train(world: World, cases: list[Case]) -> dict[Case, Run]:
    """Losses and weights of each case."""
    out = {}
    for case in cases:
        fresh_groups()
        config = run_of(case)
        engine = build_engine(config, world)
        losses = []
        for step in range(1, STEPS + 1):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            losses.append(engine.train_step(batches)["loss"])
        out[case] = losses, dict(engine.full_state())
    return out


@pytest.fixture(scope="module")
def trained() -> dict[Case, Run]:
    """All cases on two ranks."""
    return run_ranks(train, 2, CASES, timeout=240)[0]


@pytest.fixture(scope="module")
def alone() -> dict[str, Run]:
    """Each decoder in one process."""
    return {name: plain(run_of((name, "zero0", 1)))[::2] for name in ("q3", "o3")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_as_one_process(case: Case, trained: dict[Case, Run], alone: dict[str, Run]) -> None:
    loss, weights = difference(trained[case], alone[case[0]])
    assert loss < 1e-5 and weights < 1e-5


def test_gradients_that_are_wrong_would_be_seen(alone: dict[str, Run]) -> None:
    wrong = plain(run_of(("q3", "zero0", 1)), too_large=0.01)[::2]
    assert difference(wrong, alone["q3"])[1] > 1e-4


def batch_of(*lanes: int) -> Batch:
    return merge([videos.sequence(1, lane, "image_tokens") for lane in lanes])


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_whole_pictures_are_dealt(size: int) -> None:
    """Every window comes to one rank with all its patches, and the shares have one shape."""
    batch = batch_of(0, 1, 2, 3)
    dealt = Deal(batch, size)
    shares = [dealt.share(rank) for rank in range(size)]
    assert dealt.positions.equal(torch.cat([share["image_positions"] for share in shares]))
    assert len({tuple(part.shape for part in share.values()) for share in shares}) == 1
    patches = batch.image_masks.shape[1]
    # a patch is known by the mean of its crop's bytes and its place
    marks = batch.images.flatten(1).double().mean(1)

    def seen(images: torch.Tensor, windows: torch.Tensor, positions: torch.Tensor) -> dict:
        of = images.flatten(1).double().mean(1)
        named = torch.where(windows >= 0, of[windows.clamp(min=0) // patches] * 100, -1)
        named = named + torch.where(windows >= 0, windows % patches, 0)
        rows = zip(positions.tolist(), named.tolist())
        return {position: row for position, row in rows if position >= 0}

    want = seen(batch.images, batch.windows, batch.image_positions)
    assert len(marks.unique()) > 8 and len(want) == int((batch.image_positions >= 0).sum())
    names = ("images", "windows", "image_positions")
    got = [seen(*(share[name] for name in names)) for share in shares]
    assert {k: v for part in got for k, v in part.items()} == want
    assert sum(map(len, got)) == len(want)


def test_joined_rows_are_their_rows() -> None:
    """Packing pictures and videos, whose windows are of unlike width, changes no logit."""
    model = Molmo(family("q3"))
    model.reset_parameters(0)
    model.eval()
    both = batch_of(0, 1, 2)
    with torch.no_grad():
        whole = model.logits(both)
        for row, lane in enumerate((0, 1, 2)):
            one = batch_of(lane)
            tokens = one.input_ids.shape[1]
            torch.testing.assert_close(whole[row, :tokens], model.logits(one)[0], atol=2e-5, rtol=0)
