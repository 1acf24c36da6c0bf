"""Pipeline, sequence, expert and tensor parallelism train as one plain process does, and read each other's files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handing_on import hand_on

from molmo_ds.batch import PER_TOKEN, Batch, windows_of
from molmo_ds.config import RunConfig
from molmo_ds.data.order.packing import merge
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.model.molmo import component
from molmo_ds.testing import synthetic
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import difference, family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import checkpoint

ROOT = Path(__file__).parents[2]

STEPS, LIMIT = 2, 2.0  # the limit clips some components at some steps
Case = tuple[str, str, int, str]  # decoder, strategy, micro-batch, activation checkpointing
TWO: list[Case] = [
    ("qwen2", "zero3_sp", 2, "none"),
    ("olmo2", "zero3_tp", 4, "none"),
    ("olmoe", "zero3_ep", 2, "full"),
    ("qwen2", "pipe_zero1", 2, "one_in_two"),
    ("frozen", "pipe_zero1", 2, "none"),
    ("olmoe", "pipe_dualpipev", 2, "full"),
    ("frozen", "pipe_dualpipev", 2, "none"),
]
FOUR: list[Case] = [
    ("qwen2", "sp4", 2, "none"),  # two key-value heads on four ranks
    ("qwen2", "pipe4", 2, "none"),  # stages that receive from both sides
    ("qwen2", "dualpipev4", 1, "full"),  # each of 8 stages holds a row or two
    ("olmoe", "dualpipev_ep", 1, "none"),  # the first two ranks hold no experts
    ("olmoe", "sp2_ep4", 2, "none"),  # a group of experts holds two groups of sequences
]
if EVERYTHING:  # what test_unlike_ranks.py trains as well, or a part of the others
    TWO += [
        ("qwen2", "zero3_sp", 1, "none"),
        ("olmo2", "zero3_sp", 2, "full"),
        ("olmo2", "zero3_tp", 2, "none"),
        ("olmoe", "zero2_ep", 1, "none"),
        ("olmoe", "zero3_sp_ep", 2, "full"),
        ("olmoe", "pipe_zero1", 1, "vision"),
        ("qwen2", "pipe_dualpipev", 1, "one_in_two"),
        ("qwen2", "zero3_offload", 4, "none"),
        ("qwen2", "zero3_hpz", 2, "none"),
    ]
    FOUR += [
        ("qwen2", "pipe_zero1", 1, "full"),
        ("olmoe", "pipe_zero1_ep", 2, "none"),
        ("olmoe", "zero3_ep_tp", 2, "none"),
        ("olmoe", "sp4_ep2", 1, "none"),  # a group of sequences holds two groups of experts
        ("qwen2", "zero3_tp", 2, "full"),
    ]
SHARED = {"engine": "sequence", "sequence_parallel_size": 4}
STAGES = {"engine": "pipeline", "stages": 4}
MADE = {  # a file of ds_configs/, and what stands in place of its blocks
    "sp4": ("zero3_sp", {"molmo_ds": SHARED, "zero_optimization": {"stage": 2}}),
    "sp2_ep4": ("zero3_sp_ep", {"expert_parallel": {"enabled": True, "autoep_size": 4}}),
    "sp4_ep2": ("zero3_sp_ep", {"molmo_ds": SHARED, "zero_optimization": {"stage": 2}}),
    "pipe4": ("pipe_zero1", {"molmo_ds": STAGES}),
    "dualpipev4": ("pipe_dualpipev", {"molmo_ds": {**STAGES, "schedule": "dualpipev"}}),
    "dualpipev_ep": ("pipe_dualpipev", {"expert_parallel": {"enabled": True, "autoep_size": 2}}),
}
# one step each, the files handed on; test_resume_elsewhere.py has the others
CHAIN = ["zero3_ep", "zero3_offload", "pipe_dualpipev", "zero3_hpz"]
if EVERYTHING:
    CHAIN = ["zero3", "pipe_zero1", "zero3_sp", *CHAIN[:3], "zero3_tp", CHAIN[3]]


def sgd(case: Case, folder: str = "") -> RunConfig:
    """SGD, whose updates show an error of gradient scale that Adam would hide, with clipping."""
    path = f"{folder}/{case[1]}.json" if case[1] in MADE else f"ds_configs/{case[1]}.json"
    model = family("qwen2" if case[0] == "frozen" else case[0])
    base = synthetic.config(
        model=model, strategy=path, micro_batch=case[2], activation_checkpointing=case[3]
    )
    base = replace(base, check_collectives=True)
    vision = replace(base.optim.vision, freeze=case[0] == "frozen")
    return replace(
        base, optim=replace(base.optim, max_grad_norm=LIMIT, vision=vision), max_steps=STEPS
    )


def odd(batch: Batch) -> Batch:
    """The first 17 tokens of each sequence, which two or four ranks cannot share evenly."""
    length = batch.input_ids.shape[1]
    texts = {name: getattr(batch, name)[:, :17] for name in PER_TOKEN}
    positions = batch.image_positions
    shorter = torch.where(positions >= 0, positions - positions // length * (length - 17), -1)
    return batch.replace(**texts, image_positions=shorter).reweighted(texts["loss_weights"])


def edges(config: RunConfig, rank: int, size: int) -> list[Batch]:
    """A step whose first sequence holds the frames of a video and whose last one is empty, or left out if it can be."""
    parts = [synthetic.sequence(20, lane) for lane in range(config.global_batch)]
    first = parts[0]
    last = parts[-1]
    positions = torch.full((5, synthetic.POOLED), -1)
    positions[:, 0] = torch.arange(5)
    parts[0] = first.replace(
        images=first.images[:1].expand(5, -1, -1, -1),
        image_masks=first.image_masks[:1].expand(5, -1),
        windows=windows_of(5, 4, 2),
        image_positions=positions.flatten(),
    )
    empty = {name: tensor * 0 for name, tensor in vars(last).items()}
    empty["image_positions"] = torch.full_like(last.image_positions, -1)
    empty["windows"] = last.windows
    parts[-1] = Batch(**empty).reweighted(empty["loss_weights"])
    share = config.global_batch // size
    mine = parts[rank * share : (rank + 1) * share]
    mine = mine[:-1] if rank == size - 1 and config.micro_batch == 1 else mine
    return [
        merge(mine[i : i + config.micro_batch]) for i in range(0, len(mine), config.micro_batch)
    ]


def train(world: World, cases: list[Case], folder: str) -> dict[Case, tuple]:
    """(log, weights, held-out losses, a draw for dropout) of each case."""
    return {case: train_one(world, sgd(case, folder)) for case in cases}


def train_one(world: World, config: RunConfig) -> tuple:
    """One of them."""
    fresh_groups()
    engine = build_engine(config, world)

    def batches(step: int) -> list[Batch]:
        return synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)

    log = [engine.train_step(batches(step)) for step in range(1, STEPS + 1)]
    draw = torch.rand(2).tolist()
    weights = dict(engine.full_state())
    last = edges(config, engine.data_rank, engine.data_size)
    # more, of two lengths
    others = [odd(b) for b in batches(10)], batches(10) + [odd(b) for b in batches(11)]
    held_out = [engine.eval_loss(x)["loss"] for x in (batches(10), *others)]
    assert engine.eval_loss([merge(batches(10))])["loss"] == pytest.approx(held_out[0], abs=1e-5), (
        "one micro-batch"
    )
    held_out += [engine.train_step(last)["loss"], engine.eval_loss(last)["loss"]]
    return log, weights, held_out, draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for name, (base, blocks) in MADE.items():
        values = json.loads((ROOT / f"ds_configs/{base}.json").read_text()) | blocks
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[int, Case], tuple]:
    two = run_ranks(train, 2, TWO, str(folder), timeout=240)
    four = run_ranks(train, 4, FOUR, str(folder), timeout=240)
    for ranks in (two, four):
        for case, (log, *_) in ranks[0].items():
            assert all(other[case][0] == log for other in ranks), "ranks log different numbers"
    draws = {case: [rank[case][3] for rank in two] for case in TWO}
    assert len({tuple(draw) for draw in draws[TWO[0]]}) == 2, (
        "ranks that share a sequence drop out alike"
    )
    assert len({tuple(draw) for draw in draws[TWO[1]]}) == 1, (
        "tensor-parallel ranks must drop out alike"
    )
    return {(n, case): run for n, ranks in ((2, two), (4, four)) for case, run in ranks[0].items()}


@pytest.fixture(scope="module")
def oracles() -> dict[str, tuple]:
    return {
        name: plain(sgd((name, "zero0", 8, "none")))
        for name in ("qwen2", "olmo2", "olmoe", "frozen")
    }


KEYS = [(2, case) for case in TWO] + [(4, case) for case in FOUR]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]}-" + "-".join(map(str, key[1])))
def test_equals_one_plain_process(runs: dict, oracles: dict, key: tuple) -> None:
    log, weights, held_out, _ = runs[key]
    losses, norms, expected = oracles[key[1][0]]
    for values, loss, parts in zip(log, losses, norms, strict=True):
        assert values["loss"] == pytest.approx(loss, abs=1e-5)
        for part, norm in parts.items():
            assert values[f"grad_norm/{part}"] == pytest.approx(norm, rel=1e-5), part
    assert weights.keys() == expected.keys()
    for part in ("connector", "vision", "text"):
        names = [name for name in weights if component(name) == part]
        mine, theirs = (
            torch.cat([w[n].flatten().double() for n in names]) for w in (weights, expected)
        )
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=3e-6, rtol=1e-5, msg=name)
    same = [run for (_, case), run in runs.items() if case[0] == key[1][0]]
    assert (
        all(other[2] == pytest.approx(held_out, abs=1e-5) for other in same)
        and len(set(held_out)) == 5
    )


def test_clipping_acts_on_some_only(oracles: dict) -> None:
    norms = [norm for oracle in oracles.values() for parts in oracle[1] for norm in parts.values()]
    assert min(norms) < LIMIT < max(norms)


def test_checkpoints_pass_from_strategy_to_strategy(tmp_path: Path) -> None:
    config = synthetic.adamw(model=family("olmoe"), max_steps=len(CHAIN))
    losses, _, expected = plain(config)
    runs = [replace(config, strategy=f"ds_configs/{strategy}.json") for strategy in CHAIN]
    ours, weights = run_ranks(hand_on, 2, str(tmp_path), runs, timeout=240)[0]
    loss, weight = difference((ours, weights), (losses, expected))
    assert loss <= 1e-5 and weight <= 3e-5
    for found in checkpoint.steps(tmp_path):  # a strided checkpoint is read without ranks as well
        stored = dict(checkpoint.read_full_state(found))
        assert {name: w.shape for name, w in stored.items()} == {
            name: w.shape for name, w in weights.items()
        }
    last = dict(checkpoint.read_full_state(tmp_path))
    assert all(torch.equal(last[name], weight) for name, weight in weights.items())
