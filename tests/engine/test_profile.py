"""Phases and traces of the steps asked for."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.monitor import profile
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def timed(world: World, strategies: list[str], folder: str) -> dict[str, tuple]:
    """Three steps, the second of them watched: (phases of each, hooks before and after, losses)."""
    out = {}
    for strategy in strategies:
        config = synthetic.config(
            strategy=f"ds_configs/{strategy}.json", profile_steps=(2,), out=f"{folder}/{strategy}",
            activation_checkpointing="full", micro_batch=4,
        )  # fmt: skip
        engine = build_engine(config, world)
        before = hooks(engine.model)
        plain = torch.autograd.backward
        times = []
        losses = []
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
        stage = {
            "zero3": {"vision", "connector", "decoder", "loss"},
            "pipe_zero1": ({"vision"}, {"loss"})[rank],
        }
        expected = (*stage[strategy], "backward", "optimizer", "communication", "other")
        assert {f"phase/{name}" for name in expected} <= there
        trace = json.loads(
            (folder / strategy / f"profile/step-00000002-rank-0000{rank}.json").read_text()
        )
        names = {event.get("name", "") for event in trace["traceEvents"]}
        assert any(name.startswith("gloo:") for name in names) and any(
            "backward" in name.lower() for name in names
        )


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
