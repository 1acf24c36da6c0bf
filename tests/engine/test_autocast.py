"""precision=bf16 is fp32 weights under autocast: each strategy stays within autocast's own noise of fp32."""

from dataclasses import replace

import pytest
import torch

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import unlike
from molmo_ds.testing.oracle import family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks

STEPS = 2
SEQUENCES = 4
SHAPES = unlike.extremes(SEQUENCES, STEPS)
FEW = [
    ("zero1", "qwen2"),
    ("zero3", "qwen2"),
    ("zero3_sp", "qwen2"),
    ("zero3_tp", "qwen2"),
    ("zero3_ep", "olmoe"),
    ("pipe_dualpipev", "qwen2"),
]
OTHERS = [
    ("zero0", "qwen2"),
    ("zero2", "qwen2"),
    ("zero3_offload", "qwen2"),
    ("zero3_tp_offload", "qwen2"),
    ("zero3_ep_offload", "olmoe"),
    ("zero3_hpz", "qwen2"),
    ("zero2_ep", "olmoe"),
    ("pipe_zero1", "qwen2"),
]
FOUR = [("zero3_ep_tp", "olmoe"), ("zero3_sp_ep", "olmoe"), ("pipe_zero1_ep", "olmoe")]
Measures = dict[str, float]


def run_config(name: str, strategy: str, precision: str) -> RunConfig:
    config = unlike.run_config(family(name), strategy, STEPS, SEQUENCES)
    return replace(config, precision=precision)


def train(world: World, cases: list[tuple[str, str]]) -> dict[tuple[str, str], tuple]:
    """(log, weights, types of the parameters) of each case in bf16."""
    out = {}
    for strategy, name in cases:
        fresh_groups()
        config = run_config(name, f"ds_configs/{strategy}.json", "bf16")
        engine = build_engine(config, world)
        log = []
        for step in range(1, STEPS + 1):
            batches = unlike.micro_batches(config, SHAPES, step, engine.data_rank, engine.data_size)
            log.append(engine.train_step(batches))
        types = {parameter.dtype for parameter in engine.model.parameters()}
        out[strategy, name] = log, dict(engine.full_state()), types
    return out


def one_process(world: World, names: list[str]) -> dict[str, list[tuple]]:
    """[fp32, autocast] of each decoder by torch alone, as (log, weights)."""
    shapes = tuple(map(tuple, SHAPES))
    out = {}
    for name in names:
        config = run_config(name, "", "fp32")
        out[name] = []
        for casts in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=casts, cache_enabled=False):
                losses, norms, weights = plain(
                    config, lanes=lambda step: unlike.lanes(shapes, step)
                )
            log = [
                {"loss": loss, **{f"grad_norm/{part}": norm for part, norm in parts.items()}}
                for loss, parts in zip(losses, norms, strict=True)
            ]
            out[name].append((log, weights))
    return out


def apart(ours: tuple, right: tuple) -> Measures:
    """Largest relative differences of loss and gradient norms, and that of all weights together."""
    found = {"loss": 0.0, "norm": 0.0}
    for mine, theirs in zip(ours[0], right[0], strict=True):
        for key, value in theirs.items():
            if key == "loss" or key.startswith("grad_norm/"):
                kind = key.partition("/")[0].removeprefix("grad_")
                found[kind] = max(found[kind], abs(mine[key] - value) / max(abs(value), 1e-9))
    mine, theirs = (
        torch.cat([weights[name].flatten().double() for name in right[1]])
        for weights in (ours[1], right[1])
    )
    found["weights"] = float((mine - theirs).norm() / theirs.norm())
    return found


@pytest.fixture(scope="module")
def oracles() -> dict[str, list[tuple]]:
    # in a process of its own: whether products use bf16 is remembered
    return run_ranks(one_process, 1, ["qwen2", "olmoe"], timeout=200)[0]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> dict[tuple[str, str], tuple]:
    """With --examples above its default every strategy, else one of each kind."""
    everything = request.config.getoption("--examples") > 2
    found = run_ranks(train, 2, FEW + (OTHERS if everything else []), timeout=300)[0]
    if everything:
        found |= run_ranks(train, 4, FOUR, timeout=300)[0]
    return found


def test_within_the_noise_of_autocast(runs: dict, oracles: dict) -> None:
    each = [apart(autocast, fp32) for fp32, autocast in oracles.values()]
    noise = {measure: max(one[measure] for one in each) for measure in each[0]}
    assert noise["loss"] > 1e-5  # products were in bf16
    for (strategy, name), run in runs.items():
        fp32 = oracles[name][0]
        for measure, distance in apart(run, fp32).items():
            assert distance < 4 * noise[measure], (strategy, measure, distance, noise)
        assert run[2] == {torch.float32}, strategy


def test_a_gradient_twice_as_large_is_no_noise(oracles: dict) -> None:
    """The test above can fail."""
    fp32, autocast = oracles["qwen2"]
    noise = apart(autocast, fp32)
    doubled = [
        {
            key: value * (2 if key.startswith("grad_norm/vision") else 1)
            for key, value in line.items()
        }
        for line in autocast[0]
    ]
    assert apart((doubled, autocast[1]), fp32)["norm"] > 4 * noise["norm"]
