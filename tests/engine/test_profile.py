"""Phases and traces of the steps asked for, and compiled layers, which compute the same and compile once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import torch
from ranks import run_ranks
from torch import nn

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, compiled, profile
from molmo_ds.engine.launch import World


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def timed(world: World, strategies: list[str], folder: str) -> dict[str, tuple]:
    """Three steps, the second of them watched: (phases of each, hooks before and after, losses)."""
    out = {}
    for strategy in strategies:
        config = synthetic.config(
            strategy=f"ds_configs/{strategy}.json", profile_steps=(2,), out=f"{folder}/{strategy}",
            activation_checkpointing="full",
        )  # fmt: skip
        engine = build_engine(config, world)
        before, plain = hooks(engine.model), torch.autograd.backward
        times, losses = [], []
        for step in (1, 2, 3):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            with profile.watch(engine, config, 0.25) as phases:
                losses.append(engine.train_step(batches)["loss"])
            times.append(phases)
        assert torch.autograd.backward is plain
        out[strategy] = times, (before, hooks(engine.model)), losses
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, tuple]]:
    return run_ranks(timed, 2, ["zero3", "pipe_zero1"], str(folder), timeout=180)


@pytest.mark.parametrize("strategy", ["zero3", "pipe_zero1"])
def test_phases_of_the_step_that_was_asked_for(runs: list, folder: Path, strategy: str) -> None:
    for rank, run in enumerate(runs):
        (first, phases, third), (before, after), _ = run[strategy]
        assert first == third == {} and before == after, "other steps are left alone"
        assert list(phases) == [f"phase/{name}" for name in profile.PHASES]
        assert phases["phase/data"] == 0.25
        there = {name for name, seconds in phases.items() if seconds > 0}
        stage = {"zero3": {"vision", "connector", "decoder", "loss"}, "pipe_zero1": ({"vision"}, {"loss"})[rank]}
        expected = (*stage[strategy], "backward", "optimizer", "communication", "other")
        assert {f"phase/{name}" for name in expected} <= there
        trace = json.loads((folder / strategy / f"profile/step-00000002-rank-0000{rank}.json").read_text())
        names = {event.get("name", "") for event in trace["traceEvents"]}
        assert any(name.startswith("gloo:") for name in names) and any("backward" in name.lower() for name in names)


def test_watching_changes_nothing(runs: list) -> None:
    assert runs[0]["zero3"][2] == pytest.approx(runs[0]["pipe_zero1"][2], abs=1e-5)


def test_phases_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    clock = profile.Clock(torch.device("cpu"))

    def work(seconds: float) -> None:
        now[0] += seconds

    work(1)
    clock.around("decoder", lambda: (work(2), clock.around("connector", work)(3), work(4)))()
    clock.around("backward", lambda: (work(5), clock.around("vision", work)(6)))()  # computed again
    work(7)
    clock._add()
    seconds = {name: value for name, value in clock.seconds.items() if value}
    assert seconds == {"other": 8, "decoder": 6, "connector": 3, "backward": 11}


def steps(world: World, cases: list[tuple[int, bool]]) -> list[tuple]:
    """(losses, weights, graphs compiled, graph breaks) of three steps, one of them with a lone crop."""
    from torch._dynamo.utils import counters

    compiled.BACKEND, out = "aot_eager", []
    for stage, compiles in cases:
        torch._dynamo.reset()
        counters.clear()
        config: RunConfig = replace(
            synthetic.config(strategy=f"ds_configs/zero{stage}.json", global_batch=2, micro_batch=2), compile=compiles
        )
        engine = build_engine(config, world)
        losses = [engine.train_step(synthetic.micro_batches(config, step, 0, 1))["loss"] for step in (1, 2, 3)]
        crops = [len(synthetic.micro_batches(config, step, 0, 1)[0].images) for step in (1, 2, 3)]
        assert len(set(crops)) > 1, "the number of crops must vary"
        breaks = dict(counters["graph_break"])
        out.append((losses, dict(engine.full_state()), counters["stats"]["unique_graphs"], breaks))
    return out


def test_compiled_layers_compute_the_same_and_compile_once() -> None:
    plain, *fast = run_ranks(steps, 1, [(1, False), (1, True), (3, True)], timeout=240)[0]
    assert plain[2] == 0
    # a ViT block and a decoder layer; under ZeRO-3 the attention and the MLP of each
    for expected, (losses, weights, graphs, breaks) in zip((2, 4), fast):
        assert losses == pytest.approx(plain[0], abs=1e-5)
        assert graphs == expected and not breaks
        for name, weight in weights.items():
            torch.testing.assert_close(weight, plain[1][name], atol=2e-6, rtol=1e-5, msg=name)
