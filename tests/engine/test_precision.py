"""precision=auto: bf16 on a CPU only where it pays, one choice on all ranks, and a resumed run keeps its own."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World, alone
from molmo_ds.engine.plan import precision
from molmo_ds.testing.ranks import run_ranks


def run(preset: str, *words: str) -> RunConfig:
    return settings.load(None, [f"preset={preset}", *words])


def on(config: RunConfig, folder: Path, world: World | None = None) -> str:
    return precision.settled(config, world or alone(), folder).precision


@pytest.mark.parametrize(("gain", "expected"), [(1.4, "fp32"), (1.5, "bf16"), (0.0, "fp32")])
def test_where_it_pays(
    gain: float,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(precision.library, "bf16_gain", lambda: gain)
    with caplog.at_level(logging.INFO, "molmo_ds"):
        assert on(run("reference_cpu"), tmp_path) == expected
    assert f"precision=auto: {expected}" in caplog.text
    assert on(run("reference_cpu", "compile=true"), tmp_path) == "fp32"
    assert on(run("tiny"), tmp_path) == "fp32"  # 128 wide
    weights = tmp_path / "bf16_weights.json"
    weights.write_text('{"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}')
    assert on(run("reference_cpu", f"strategy={weights}"), tmp_path) == "fp32"
    for said in ("fp32", "bf16"):
        assert on(run("reference_cpu", f"precision={said}"), tmp_path) == said


def test_on_a_gpu(tmp_path: Path) -> None:
    world = replace(alone(), device=torch.device("cuda"))
    assert on(run("tiny"), tmp_path, world) == "bf16"


@pytest.mark.parametrize("begun", ["fp32", "bf16", "auto"])
def test_a_resumed_run_keeps_its_own(
    begun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "fp32" if begun == "auto" else begun  # of a version that settled none, on a CPU
    other = "bf16" if kept == "fp32" else "fp32"
    monkeypatch.setattr(precision.library, "bf16_gain", lambda: 9.0 * (other == "bf16"))
    config = run("reference_cpu")
    settings.save(replace(config, precision=begun), tmp_path / "config.yaml")
    assert on(config, tmp_path) == kept
    assert on(replace(config, resume=False), tmp_path) == other


def unlike(world: World, folder: Path) -> str:
    gains = (9.0, 1.0)
    precision.library.bf16_gain = lambda: gains[world.rank]
    return on(run("reference_cpu"), folder, world)


def test_one_slow_host_decides_for_all(tmp_path: Path) -> None:
    assert run_ranks(unlike, 2, tmp_path) == ["fp32", "fp32"]
