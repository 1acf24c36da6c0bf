"""HeMolmo trains under ZeRO as in one process, and is refused elsewhere; its made-up rows hold unlike pictures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig, SelectionConfig
from molmo_ds.batch import Sample, SelectionBatch, SelectionSample
from molmo_ds.config import RunConfig
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.selected import selected
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.infer.generate import generate
from molmo_ds.infer.options import Options
from molmo_ds.infer.selected import answer
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import Run, difference, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks

WORDS = 96
IM_START, IM_END, IM_PATCH, IM_COL, IM_LOW = (WORDS + i for i in (0, 1, 2, 3, 5))
LANES = 4
STRATEGIES = ["zero2", "zero3"]
REFUSED = ["zero3_sp", "zero3_tp", "pipe_zero1", "pipe_dualpipev"]


def model() -> MolmoConfig:
    base = synthetic.MODEL
    text = replace(base.text, max_position_embeddings=128, image_attention="within_image")
    connector = replace(base.connector, padding_embed="none")
    # without dropout; the second layer learns from the scorer too, through the first pass
    selection = SelectionConfig(scored_dropout=0.0, window_dropout=0.0, first_pass_layers=(1, 2))
    return replace(base, family="hemolmo", text=text, connector=connector, selection=selection)


def drawn(lane: int, step: int) -> tuple[Sample, Tensor, Tensor]:
    """A question, 4 low windows of a crop, 2 to 5 picks of 4 or 8 high windows; a lane has no picture."""
    random = torch.Generator().manual_seed(100 * step + lane)
    crops = 0 if lane == 1 else 1 + lane % 2
    picks = 2 + lane
    high = 4 * crops
    question = [1, *torch.randint(3, WORDS, (3 + lane,), generator=random).tolist()]
    low = [IM_START, *([IM_LOW] * 2 + [IM_COL]) * 2, IM_END]
    shown = [IM_START, *[IM_PATCH] * picks, *[IM_COL] * 2 * crops, IM_END]
    answered = torch.randint(3, WORDS, (4,), generator=random).tolist()
    ids = torch.tensor([*question, *(low + shown if crops else []), *answered])
    places = torch.arange(len(ids))
    patches = (ids == IM_PATCH).nonzero()[:, 0]
    places[patches] = places[patches[:1]] if crops else places[patches]
    weights = torch.zeros(len(ids))
    weights[-5:-1] = 1 + torch.rand(4, generator=random)
    windows = synthetic.windows_of((crops + 1) if crops else 0, 4, 2)
    share = torch.rand(16 if crops else 0, high, generator=random)
    count = crops + 1 if crops else 0
    unpicked = Sample(
        input_ids=ids,
        labels=ids.roll(-1).clamp(max=WORDS - 1),
        loss_weights=weights,
        position_ids=places,
        branch_ids=torch.zeros(len(ids), dtype=torch.int32),
        image_ids=image_ids(ids, WORDS, "within_image", "hemolmo"),
        images=torch.randint(0, 256, (count, 28, 28, 3), generator=random, dtype=torch.uint8),
        image_masks=torch.ones(count, 16),
        windows=windows,
        image_positions=torch.empty(0, dtype=torch.int64),
    )
    return unpicked, torch.arange(high), share / share.sum(0).clamp(min=1e-9)


def sample(lane: int, step: int) -> SelectionSample:
    """A sample of the lane with what the scorer needs."""
    unpicked, places, share = drawn(lane, step)
    return selected(unpicked, WORDS, places, share)


def batch(lane: int, step: int) -> SelectionBatch:
    return collate_selected([sample(lane, step)])


def run_of(strategy: str) -> RunConfig:
    path = f"ds_configs/{strategy}.json"
    return synthetic.config(
        model=model(), strategy=path, global_batch=LANES, max_steps=2, check_collectives=True
    )


def train(world: World) -> dict[str, Run | str]:
    out: dict[str, Run | str] = {}
    for strategy in [*STRATEGIES, *REFUSED]:
        fresh_groups()
        try:
            engine = build_engine(run_of(strategy), world)
        except ValueError as error:
            out[strategy] = str(error)
            continue
        share = LANES // engine.data_size
        mine = range(engine.data_rank * share, (engine.data_rank + 1) * share)
        losses = [
            engine.train_step([batch(lane, step) for lane in mine])["loss"] for step in (1, 2)
        ]
        out[strategy] = losses, dict(engine.full_state())
    return out


@pytest.fixture(scope="module")
def trained() -> dict[str, Run | str]:
    return run_ranks(train, 2, timeout=240)[0]


@pytest.fixture(scope="module")
def alone() -> Run:
    lanes = lambda step: [batch(lane, step) for lane in range(LANES)]  # noqa: E731
    return plain(run_of("zero1"), lanes=lanes)[::2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_one_process(strategy: str, trained: dict[str, Run], alone: Run) -> None:
    loss, weights = difference(trained[strategy], alone)
    assert loss < 1e-5 and weights < 1e-5
    fresh = Molmo(model())
    fresh.reset_parameters(run_of(strategy).seed)
    moved = {name for name, p in fresh.named_parameters() if not torch.equal(p, alone[1][name])}
    assert "scorer.low.weight" in moved and "scorer.prior.down_proj.weight" in moved


@pytest.mark.parametrize("strategy", REFUSED)
def test_refused_elsewhere(strategy: str, trained: dict[str, Run | str]) -> None:
    assert "passes its decoder twice" in trained[strategy]


def test_rows_together_are_rows_alone() -> None:
    network = Molmo(model())
    network.reset_parameters(0)
    network.eval()
    both = collate_selected([sample(0, 1), sample(1, 1), sample(3, 1)])
    with torch.no_grad():
        whole = network.logits(both)
        for row, lane in enumerate((0, 1, 3)):
            one = batch(lane, 1)
            tokens = one.input_ids.shape[1]
            torch.testing.assert_close(
                whole[row, :tokens], network.logits(one)[0], atol=2e-5, rtol=0
            )
    made, scores = answer(network, both, 1, 3)
    assert made.shape == (3, 3) and bool((scores < 0).all())
    again = generate(network, both, 1, Options(max_new_tokens=3))
    assert again.token_ids[:, 0].tolist() == made.tolist()
    torch.testing.assert_close(again.scores[:, 0], scores, atol=2e-5, rtol=0)


def test_more_picks_than_windows_are_refused() -> None:
    unpicked, places, share = drawn(0, 1)
    with pytest.raises(ValueError, match="A picture of 1 windows cannot show 2; pick fewer"):
        selected(unpicked, WORDS, places[:1], share[:, :1])
