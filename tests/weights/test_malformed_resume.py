"""A run whose newest checkpoint was damaged goes on from the one before, or says why not; nothing of it is lost.

pytest tests/weights/test_malformed_resume.py --examples 300 tries more; MOLMO_FUZZ_SEED=N tries others.
"""

import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_malformed_weights import damage

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

SEED = int(os.environ.get("MOLMO_FUZZ_SEED", "0"))
EARLIER, NEWEST = "step-00000002", "step-00000003"


def config(**changes: Any) -> RunConfig:
    sizes = {"global_batch": 4, "micro_batch": 1, "strategy": "ds_configs/zero1.json"}
    return synthetic.adamw(**sizes, async_save=False, **changes)


def save_both(world: World, folder: str, seed: int) -> dict[int, dict[str, torch.Tensor]]:
    """Checkpoints after two and three steps; the weights of each by step."""
    run = replace(config(), seed=seed)
    engine = build_engine(run, world)
    weights = {}
    for step in range(3):
        engine.train_step(synthetic.micro_batches(run, step, world.rank, world.size))
        if step:
            engine.save(folder, {lane: {"step": step + 1} for lane in range(run.global_batch)})
            weights[step + 1] = dict(engine.full_state())
    engine.close()
    return weights


def mix(folder: Path, other: Path, draw: random.Random) -> str:
    """Put a file of another run's checkpoint into the newest, or call the earlier one the newest."""
    if draw.random() < 0.3:
        shutil.rmtree(folder / NEWEST)
        shutil.copytree(folder / EARLIER, folder / NEWEST)
        return "renamed"
    names = draw.sample(
        sorted(path.name for path in (other / NEWEST).iterdir()), draw.choice((1, 1, 2, 3))
    )
    for name in names:
        shutil.copy(other / NEWEST / name, folder / NEWEST / name)
    return f"of another run: {', '.join(names)}"


def resumed(world: World, folders: list[str]) -> list[tuple[int, str, dict]]:
    """(step, complaint, weights) of a resume from each folder, in one engine after the other."""
    out = []
    for folder in folders:
        engine = build_engine(config(), world)
        try:
            lanes = engine.load(folder)
        except ValueError as error:
            out.append((-1, str(error), {}))
            continue
        assert {state["step"] for state in lanes.values()} == {engine.step}
        out.append((engine.step, "", dict(engine.full_state())))
    return out


def test_the_checkpoint_before_a_damaged_one_is_used(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weights = run_ranks(save_both, 2, str(tmp_path / "run"), 1)[0]
    run_ranks(save_both, 2, str(tmp_path / "other"), 2)
    draw = random.Random(SEED)
    done = []
    for number in range(4 * request.config.getoption("--examples")):
        copy = shutil.copytree(tmp_path / "run", tmp_path / str(number))
        mixed = number % 4 == 3
        done.append(
            (copy, mix(copy, tmp_path / "other", draw) if mixed else damage(copy / NEWEST, draw))
        )
    found = run_ranks(resumed, 1, [str(copy) for copy, _ in done], timeout=60 + 5 * len(done))[0]
    seen: Counter[int] = Counter()
    for (copy, what), (step, said, state) in zip(done, found, strict=True):
        seen[step] += 1
        if step < 0:
            assert said.strip().endswith(".") and "\n" not in said, (what, said)
            # it is whole by its sums and contradicts itself, or a newer release wrote it: no reason to lose a step
            assert "value" in what or "another run" in what or "flip" in what, (what, said)
        for name, tensor in state.items():
            assert torch.equal(tensor, weights[step][name]), (what, step, name)
        for path in (tmp_path / "run" / EARLIER).iterdir():
            assert (copy / EARLIER / path.name).read_bytes() == path.read_bytes(), what
    assert seen[2] > len(done) / 3, seen
    print(dict(seen))
