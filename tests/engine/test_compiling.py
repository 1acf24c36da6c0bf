"""compile unset: on for GPUs and runs where compiled layers were proven, off elsewhere; a resumed run keeps its own."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from molmo_ds import settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World, alone
from molmo_ds.engine.plan import compiling
from molmo_ds.testing.ranks import run_ranks


def run(*words: str) -> RunConfig:
    return settings.load(None, ["preset=tiny", *words])


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> World:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return replace(alone(), device=torch.device("cuda"))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_on_where_layers_were_compiled_whole(
    capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = gpu(monkeypatch, capability)
    config = compiling.settled(run("compile_mode=max-autotune-no-cudagraphs"), world, tmp_path)
    assert config.compile is True and config.compile_mode == "default"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["preset=tiny_moe"], "experts"),
        (["preset=tiny_molmo2"], "tried for molmo2"),
        (["preset=tiny_hemolmo"], "tried for hemolmo"),
        (["strategy=ds_configs/pipe_dualpipev.json"], "DualPipeV"),
    ],
)
def test_off_and_why(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = gpu(monkeypatch)
    with caplog.at_level(logging.INFO, "molmo_ds"):
        assert compiling.settled(run(*words), world, tmp_path).compile is False
    assert reason in caplog.text and "compile=true turns it on" in caplog.text


def test_off_on_other_gpus_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = gpu(monkeypatch, (12, 0))
    with caplog.at_level(logging.INFO, "molmo_ds"):
        assert compiling.settled(run(), world, tmp_path).compile is False
        monkeypatch.setattr(torch.version, "cuda", None)
        assert compiling.settled(run(), world, tmp_path).compile is False
    assert "sm_120" in caplog.text and "no kernels for CUDA" in caplog.text


def test_off_on_a_cpu_and_what_is_said_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiling.settled(run(), alone(), tmp_path).compile is False
    world = gpu(monkeypatch)
    for said in (True, False):
        words = f"compile={said}".lower()
        assert compiling.settled(run(words), world, tmp_path).compile is said


@pytest.mark.parametrize("begun", [True, False])
def test_a_resumed_run_keeps_its_own(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.save(replace(run(), compile=begun), tmp_path / "config.yaml")
    assert compiling.settled(run(), alone(), tmp_path).compile is begun
    assert compiling.settled(run(), gpu(monkeypatch), tmp_path).compile is begun
    assert compiling.settled(run("resume=false"), alone(), tmp_path).compile is False


def unlike(world: World, folder: Path) -> str | None:
    torch.version.cuda = "13.0"
    torch.cuda.get_device_capability = lambda device: (9, world.rank)
    # gloo carries what the ranks say
    return world.first_said(compiling._refusal(run(), torch.device("cuda")))


def test_ranks_with_other_gpus_agree(tmp_path: Path) -> None:
    first, second = run_ranks(unlike, 2, tmp_path)
    assert first == second and "sm_91" in first
