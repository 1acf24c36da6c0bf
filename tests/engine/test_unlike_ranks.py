"""Every strategy equals one plain process where the ranks' batches are unlike, and gradients come in one order."""

from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as draw
from torch import nn
from torch.nn import functional as F

from molmo_ds.engine import build_engine
from molmo_ds.engine.checks.faults import GradientOrderError
from molmo_ds.engine.checks.gradient_order import GradientOrder
from molmo_ds.engine.launch import World
from molmo_ds.model.molmo import component
from molmo_ds.ops import dispatch
from molmo_ds.testing import unlike
from molmo_ds.testing.everything import EVERYTHING
from molmo_ds.testing.oracle import family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks

STEPS = 4
SEQUENCES = 4
TWO = [
    ("zero0", "qwen2"),
    ("zero1", "qwen2"),
    ("zero2", "qwen2"),
    ("zero2", "olmoe"),
    ("zero3", "olmo2"),
    ("zero3_offload", "qwen2"),
    ("zero3_hpz", "qwen2"),
    ("zero3_sp", "qwen2"),
    ("zero3_tp", "qwen2"),
    ("zero2_ep", "olmoe"),
    ("zero3_ep", "olmoe"),
    ("pipe_zero1", "qwen2"),
    ("pipe_dualpipev", "qwen2"),
]
FOUR = [
    ("zero2", "qwen2"),
    ("zero3_ep_tp", "olmoe"),
    ("zero3_sp_ep", "olmoe"),
    ("pipe_zero1_ep", "olmoe"),
    ("zero3_sp", "qwen2"),
]
SHAPES = draw.builds(
    unlike.Shape,
    *(draw.sampled_from(unlike.SIZES[name]) for name in ("tokens", "crops", "documents", "learnt")),
)
Shapes = list[list[unlike.Shape]]


def through_engine(
    world: World, cases: list[tuple[str, str]], shapes: Shapes
) -> dict[tuple[str, str], tuple]:
    """(log, weights, order of the gradients by name) of each (strategy, decoder)."""
    out = {}
    for strategy, name in cases:
        fresh_groups()
        config = unlike.run_config(
            family(name), f"ds_configs/{strategy}.json", len(shapes), len(shapes[0])
        )
        engine = build_engine(config, world)
        log = []
        for step in range(1, len(shapes) + 1):
            batches = unlike.micro_batches(config, shapes, step, engine.data_rank, engine.data_size)
            log.append(engine.train_step(batches))
        order = [engine.order.names[place] for place in engine.order.first]
        out[strategy, name] = log, dict(engine.full_state()), order
    return out


@lru_cache(maxsize=50)  # the strategies draw the same shapes
def one_process(name: str, shapes: tuple[tuple[unlike.Shape, ...], ...]) -> tuple:
    """The same by torch alone."""
    config = unlike.run_config(family(name), "", len(shapes), len(shapes[0]))
    return plain(config, lanes=lambda step: unlike.lanes(shapes, step))


def compare(run: tuple, oracle: tuple) -> None:
    """Losses, norms and weights of a run with those of one process."""
    log, weights, _ = run
    losses, norms, expected = oracle
    for values, loss, parts in zip(log, losses, norms, strict=True):
        assert values["loss"] == pytest.approx(loss, rel=3e-6, abs=1e-6)
        for part, norm in parts.items():
            assert values[f"grad_norm/{part}"] == pytest.approx(norm, rel=5e-6, abs=1e-6), part
    for part in ("connector", "vision", "text"):
        names = [name for name in weights if component(name) == part]
        ours, theirs = (
            torch.cat([w[n].flatten().double() for n in names]) for w in (weights, expected)
        )
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.fixture(scope="module")
def runs() -> dict[tuple[int, str, str], list[tuple]]:
    shapes = unlike.extremes(SEQUENCES, STEPS)
    two = run_ranks(through_engine, 2, TWO, shapes, timeout=240)
    four = run_ranks(through_engine, 4, FOUR, shapes, timeout=240)
    found = {(2, *case): [rank[case] for rank in two] for case in TWO}
    return found | {(4, *case): [rank[case] for rank in four] for case in FOUR}


@pytest.fixture(scope="module")
def oracles() -> dict[str, tuple]:
    shapes = tuple(map(tuple, unlike.extremes(SEQUENCES, STEPS)))
    return {name: one_process(name, shapes) for name in ("qwen2", "olmoe", "olmo2")}


KEYS = [(2, *case) for case in TWO] + [(4, *case) for case in FOUR]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_equals_one_process(runs: dict, oracles: dict, key: tuple) -> None:
    for rank in runs[key]:
        assert [values["loss"] for values in rank[0]] == [
            values["loss"] for values in runs[key][0][0]
        ]
    compare(runs[key][0], oracles[key[2]])


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_gradients_come_in_one_order(runs: dict, key: tuple) -> None:
    # every later pass was compared with the first as it ran; ranks of other stages hold other parameters
    orders = {tuple(rank[2]) for rank in runs[key]}
    assert len(orders) == (2 if "pipe" in key[1] else 1) and all(orders)


def test_the_key_bias_of_the_pooling_gets_no_gradient(runs: dict) -> None:
    # softmax does not see a bias of keys; ZeRO-2 once gave it another parameter's gradient
    start = dict(runs[2, "zero2", "qwen2"][0][1])["connector.pooling.k_proj.bias"]
    assert start.abs().max() <= 1e-6


# one whose ranks hold whole batches, shares of one, and parts of the network
DRAWN = [("zero2", "qwen2"), ("zero3_sp", "qwen2"), ("pipe_zero1", "qwen2")]


@pytest.mark.parametrize(("strategy", "name"), TWO if EVERYTHING else DRAWN, ids=str)
def test_equals_one_process_for_drawn_shapes(
    strategy: str, name: str, request: pytest.FixtureRequest
) -> None:
    """`--examples 500` draws more than the few of the suite, `--hypothesis-seed 7` others, `--all` every strategy."""
    few = settings(
        max_examples=request.config.getoption("--examples"),
        derandomize=request.config.getoption("--hypothesis-seed") is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    @few
    @given(draw.lists(draw.lists(SHAPES, min_size=4, max_size=4), min_size=2, max_size=2))
    def check(shapes: Shapes) -> None:
        run = run_ranks(through_engine, 2, [(strategy, name)], shapes)[0][strategy, name]
        compare(run, one_process(name, tuple(map(tuple, shapes))))

    check()


def branching(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer as it once was: above some size another graph, which gives the weight its gradient first."""
    rows = x.reshape(-1, x.shape[-1])
    if bias is None or len(rows) < branching.rows:
        return F.linear(x, weight, bias)
    return _WeightFirst.apply(rows, weight, bias).view(*x.shape[:-1], -1)


class _WeightFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.sum(0)


def planted(world: World, strategy: str, rows: int, shapes: Shapes) -> str:
    """What this rank is told when its graph depends on its batch, and in which step."""
    branching.rows = rows
    dispatch._table["linear"]["cpu"] = branching, lambda *args: True
    config = unlike.run_config(
        family("qwen2"), f"ds_configs/{strategy}.json", len(shapes), len(shapes[0])
    )
    engine = build_engine(config, world)
    said = ""
    for step in range(1, len(shapes) + 1):
        try:
            engine.train_step(
                unlike.micro_batches(config, shapes, step, engine.data_rank, engine.data_size)
            )
        except GradientOrderError as error:
            said = f"in step {step}: {error}"
            break
    return said


LIKE = unlike.Shape(24, 2, 2, 0.5)


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_another_order_on_one_rank_is_told_before_anything_is_reduced(strategy: str) -> None:
    # the first rank's rows stay below 200, the second's do not
    shapes = [[LIKE, unlike.Shape(300, 5, 1, 1.0)]]
    said = run_ranks(planted, 2, strategy, 200, shapes)
    assert said[0] == said[1]
    assert "in step 1: The ranks' gradients become ready in different orders: gradient " in said[0]
    assert "bias on rank 0 and that of" in said[0] and "weight on rank 1" in said[0]


def test_an_order_that_changes_later_is_told_when_the_gradient_arrives() -> None:
    shapes = [[LIKE, LIKE], [unlike.Shape(300, 5, 1, 1.0)] * 2]
    first, second = run_ranks(planted, 2, "zero2", 200, shapes)
    assert first == second
    assert first.startswith("in step 2: Gradient ") and "in the first pass it was" in first


class Branch(nn.Module):
    """Two layers, of which one batch needs but one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.use_second = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) if self.use_second else self.first(x)


def missing(world: World) -> list[str]:
    """What is said of a pass that lacks a gradient in its middle, and of one that lacks the last."""
    said = []
    for uses in ((True, True, False), (False, False, True)):
        model = Branch()
        order = GradientOrder(None, torch.device("cpu"))
        order.watch(model.named_parameters())
        for model.use_second in uses[:2]:
            loss = model(torch.ones(1, 2)).sum()
            order.compare_before(loss)
            loss.backward()
            order.end_pass()
        model.use_second = uses[2]
        with pytest.raises(GradientOrderError) as caught:
            model(torch.ones(1, 2)).sum().backward()
        said.append(str(caught.value))
    return said


def test_a_gradient_too_few_or_too_many_is_named() -> None:
    few, many = run_ranks(missing, 1)[0]
    assert "is that of first." in few and "in the first pass it was second." in few
    assert "is that of second." in many and "in the first pass it was first." in many


def pipeline_planted(world: World, shapes: Shapes) -> str:
    """As `planted`, on the two ranks of each of two stages: found when the step is counted."""
    return planted(world, "pipe_zero1", 200, shapes)


def test_a_pipeline_tells_it_at_the_end_of_the_step() -> None:
    shapes = [[LIKE, LIKE, unlike.Shape(300, 5, 1, 1.0), unlike.Shape(300, 5, 1, 1.0)]]
    said = run_ranks(pipeline_planted, 4, shapes)
    assert len(set(said)) == 1
    assert said[0].startswith("in step 1: The ranks' gradients become ready in different orders")
