"""precision=auto: fp32 on a CPU and a line where bf16 would pay; a resumed run keeps its own, on every rank."""

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


def test_fp32_on_a_cpu_and_a_line_where_bf16_would_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "bf16_weights.json"
    weights.write_text('{"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}')
    monkeypatch.setattr(precision.library, "bf16_gain", lambda: 1.5)
    silent = [
        run("reference_cpu", "compile=true"),
        run("reference_cpu", f"strategy={weights}"),
        run("tiny"),  # 128 wide
    ]
    with caplog.at_level(logging.INFO, "molmo_ds"):
        assert {on(config, tmp_path) for config in silent} == {"fp32"} and not caplog.messages
        assert on(run("reference_cpu"), tmp_path) == "fp32"
        assert "1.5 x" in caplog.text and "precision=bf16" in caplog.text
        caplog.clear()
        monkeypatch.setattr(precision.library, "bf16_gain", lambda: 1.4)
        assert on(run("reference_cpu"), tmp_path) == "fp32" and not caplog.messages
    for said in ("fp32", "bf16"):
        assert on(run("reference_cpu", f"precision={said}"), tmp_path) == said


@pytest.mark.parametrize("has", [True, False])
def test_bf16_on_a_cpu_without_it_is_said(
    has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision.library, "has_bf16", lambda: has)
    settings.save(replace(run("tiny"), precision="bf16"), tmp_path / "config.yaml")
    for config in (run("tiny", "precision=bf16"), run("tiny")):  # as asked, as the run has it
        caplog.clear()
        assert on(config, tmp_path) == "bf16"
        assert ("no bf16 instructions" in caplog.text) != has
    caplog.clear()
    on_gpu = replace(alone(), device=torch.device("cuda"))
    assert on(run("tiny", "precision=bf16"), tmp_path, on_gpu) == "bf16" and not caplog.text


def test_on_a_gpu(tmp_path: Path) -> None:
    world = replace(alone(), device=torch.device("cuda"))
    assert on(run("tiny"), tmp_path, world) == "bf16"


@pytest.mark.parametrize("begun", ["fp32", "bf16", "auto"])
def test_a_resumed_run_keeps_its_own(begun: str, tmp_path: Path) -> None:
    config = run("tiny")
    settings.save(replace(config, precision=begun), tmp_path / "config.yaml")
    on_gpu = replace(alone(), device=torch.device("cuda"))
    # `auto` is of a version that settled none
    assert on(config, tmp_path) == ("fp32" if begun == "auto" else begun)
    assert on(config, tmp_path, on_gpu) == ("bf16" if begun == "auto" else begun)
    assert on(replace(config, resume=False), tmp_path) == "fp32"


def continued(world: World, folder: Path) -> str:
    # only rank 0 has the folder
    return on(run("tiny"), folder if world.rank == 0 else folder / "elsewhere", world)


def test_ranks_take_what_rank_0_reads(tmp_path: Path) -> None:
    settings.save(replace(run("tiny"), precision="bf16"), tmp_path / "config.yaml")
    assert run_ranks(continued, 2, tmp_path) == ["bf16", "bf16"]
