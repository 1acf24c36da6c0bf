"""ZeRO 0 to 3 train as one plain process does: losses, norms and weights, with unequal work on the ranks.

The steps' collectives are recorded on the way: they are those of the table in docs/evidence/many-ranks.md.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, optim
from molmo_ds.engine.launch import World
from molmo_ds.model.molmo import Molmo, component
from molmo_ds.testing import collectives, synthetic, tables
from molmo_ds.testing.oracle import plain_log
from molmo_ds.testing.ranks import run_ranks

STEPS = 3
# accumulation 1 and 4 on two ranks
CASES = [(f"zero{stage}", micro) for stage in range(4) for micro in (4, 1)]
RECOMPUTED = {("zero3", 1): "full", ("zero2", 1): "one_in_two", ("zero1", 1): "vision"}
Plain = tuple[list[dict[str, float]], dict[str, Tensor]]
# what is logged, the weights after, the collectives of the last step
Run = tuple[list[dict[str, float]], dict[str, Tensor], list[collectives.Call]]
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "reduce", "broadcast", "all_to_all")


def plain(config: RunConfig) -> Plain:
    """The oracle; in step 2 without the last two lanes."""

    def lanes(step: int) -> list[Batch]:
        return [
            synthetic.sequence(step, lane) for lane in range(config.global_batch - 2 * (step == 2))
        ]

    return plain_log(config, lanes, STEPS)


def through_engine(
    world: World, cases: list[tuple[str, int]], limit: float
) -> dict[tuple[str, int], Run]:
    """The same through the engine for each (strategy, micro-batch)."""
    out = {}
    for strategy, micro in cases:
        config = sgd(limit, strategy=f"ds_configs/{strategy}.json", micro_batch=micro)
        config = replace(config, activation_checkpointing=RECOMPUTED.get((strategy, micro), "none"))
        engine = build_engine(config, world)
        log = []
        for step in range(1, STEPS + 1):
            with collectives.Recorder() as recorder:
                log.append(engine.train_step(share(config, step, world)))
        weights = dict(engine.full_state())
        nothing = [
            b.reweighted(b.loss_weights * 0)
            for b in synthetic.micro_batches(config, 9, world.rank, world.size)
        ]
        assert engine.train_step(nothing)["loss"] == 0
        for name, weight in engine.full_state():
            assert torch.equal(weight, weights[name]), (
                f"{name} moved in a step in which nothing is learnt"
            )
        held_out = engine.eval_loss(synthetic.micro_batches(config, 10, world.rank, world.size))[
            "loss"
        ]
        out[strategy, micro] = [*log, {"loss": held_out}], weights, recorder.calls
    return out


def share(config: RunConfig, step: int, world: World) -> list[Batch]:
    """This rank's micro-batches; in step 2 without those that hold but lanes 6 and 7, or without weights for these."""
    made = synthetic.micro_batches(config, step, world.rank, world.size)
    if step != 2 or world.rank < world.size - 1:
        return made
    whole, left = divmod(2, config.micro_batch)
    made = made[: len(made) - whole]
    if left:
        weights = made[-1].loss_weights.clone()
        weights[-left:] = 0
        made[-1] = made[-1].reweighted(weights)
    return made


def sgd(limit: float, **changes) -> RunConfig:
    """SGD, whose updates show an error of gradient scale that Adam would hide."""
    base = synthetic.config(**changes)
    return replace(base, optim=replace(base.optim, max_grad_norm=limit))


LIMIT = 2.0  # some components are clipped at some steps and some are not


@pytest.fixture(scope="module")
def oracle() -> Plain:
    return plain(sgd(LIMIT))


@pytest.fixture(scope="module")
def runs() -> dict[tuple[int, str, int], Run]:
    two = run_ranks(through_engine, 2, CASES, LIMIT, timeout=240)
    one = run_ranks(through_engine, 1, [("zero3", 8), ("zero0", 2)], LIMIT)
    for key, (log, _, calls) in two[0].items():
        assert log == two[1][key][0], "ranks log different numbers"
        assert calls == two[1][key][2], "ranks make different collectives"
    return {
        (size, *key): run for size, out in ((2, two[0]), (1, one[0])) for key, run in out.items()
    }


KEYS = [(2, *case) for case in CASES] + [(1, "zero3", 8), (1, "zero0", 2)]


def test_clipping_acts_on_some_components_only(oracle: Plain) -> None:
    norms = [values[f"grad_norm/{part}"] for values in oracle[0] for part in optim.COMPONENTS]
    assert min(norms) < LIMIT < max(norms)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_losses_and_norms_equal_one_plain_process(runs: dict, oracle: Plain, key: tuple) -> None:
    for step, (ours, plain_values) in enumerate(zip(runs[key][0], oracle[0])):
        for name, value in plain_values.items():
            assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_weights_equal_one_plain_process(runs: dict, oracle: Plain, key: tuple) -> None:
    weights = runs[key][1]
    assert weights.keys() == oracle[1].keys()
    for part in optim.COMPONENTS:
        names = [name for name in weights if component(name) == part]
        ours, plain_weights = (
            torch.cat([w[n].flatten().double() for n in names]) for w in (weights, oracle[1])
        )
        assert (ours - plain_weights).norm() <= 1e-5 * plain_weights.norm()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, oracle[1][name], atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_makes_the_collectives_of_the_table(runs: dict, case: tuple[str, int]) -> None:
    calls = runs[2, *case][2]
    assert not [call for call in calls if call.of_objects]
    counted = collectives.tally(calls)
    made = [str(counted.get(kind, (0, 0))[0]) for kind in KINDS]
    [expected] = [
        row[3:9]
        for row in tables.read("collectives of the micro model")
        if row[:3] == [case[0], "2", str(4 // case[1])]
    ]
    assert made == expected


def test_frozen_weights_stay_and_others_do_not(runs: dict) -> None:
    start = Molmo(synthetic.MODEL)
    start.reset_parameters(RunConfig.seed)
    weights = runs[2, "zero3", 1][1]
    still = {
        name for name, weight in start.named_parameters() if torch.equal(weight, weights[name])
    }
    assert still == {"embed.embedding"} | {n for n in weights if n.startswith("vision.layers.2.")}


def test_held_out_loss_is_the_same_everywhere(runs: dict) -> None:
    losses = [run[0][-1]["loss"] for run in runs.values()]
    assert max(losses) - min(losses) <= 1e-5 and losses[0] > 0.1
