"""A loss or a gradient norm that is not finite ends the run in a sentence, and no checkpoint holds such a number."""

from pathlib import Path

import pytest
import torch

from molmo_ds.engine import build_engine
from molmo_ds.engine.checks.faults import NotFiniteError
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import Forked, run_ranks
from molmo_ds.train import check_finite
from molmo_ds.weights import checkpoint


def poisoned(world: World, strategy: str) -> tuple[str, list[int]]:
    """The sentence of a step in which one micro-batch of the last rank has an infinite weight; who is blamed here."""
    config = synthetic.config(strategy=f"ds_configs/{strategy}.json", micro_batch=2)
    engine = build_engine(config, world)
    names = [
        [(f"rank {engine.data_rank}", i, 0)]
        for i in range(config.global_batch // engine.data_size // 2)
    ]
    good = engine.train_step(synthetic.micro_batches(config, 1, engine.data_rank, engine.data_size))
    check_finite(engine, good, names)
    assert engine.not_finite == []
    batches = synthetic.micro_batches(config, 2, engine.data_rank, engine.data_size)
    if engine.data_rank == engine.data_size - 1:
        weights = batches[1].loss_weights.clone()
        weights[0, 3] = torch.inf
        batches[1] = batches[1].reweighted(weights)
    with pytest.raises(NotFiniteError) as caught:
        check_finite(engine, engine.train_step(batches), names)
    return str(caught.value), engine.not_finite


@pytest.mark.parametrize(("strategy", "last"), [("zero1", 1), ("zero3", 1), ("pipe_zero1", 0)])
def test_the_sentence_names_step_and_samples_on_every_rank(strategy: str, last: int) -> None:
    first, second = run_ranks(poisoned, 2, strategy)
    assert first[0] == second[0]
    assert first[0].startswith("Step 2 is not finite (loss is nan")
    assert f"came from: rank {last} 1." in first[0].replace(", ", ".")
    assert second[1] == [1]  # the rank that read it; in a pipeline the one that has the loss


def save_nan(world: World, folder: str) -> str:
    """What a save says of a model in which one number is not finite, and what it leaves."""
    engine = build_engine(synthetic.config(strategy="ds_configs/zero1.json"), world)
    engine.save(folder, {})
    engine.step = 5
    for piece in engine.fragments(changed=True):
        if piece.name == "head.norm.weight":
            piece.tensors["weight"][0] = torch.nan
    with pytest.raises(OSError, match="not finite") as caught:
        engine.save(folder, {})
    return str(caught.value)


def test_no_checkpoint_holds_what_is_not_finite(tmp_path: Path) -> None:
    said = run_ranks(save_nan, 2, str(tmp_path))
    assert said[0] == said[1] and "head.norm.weight holds a number that is not finite" in said[0]
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000000"]


def test_a_run_that_diverges_ends_and_keeps_its_last_checkpoint(
    tiny_run: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faster = [
        "optim.name=sgd",
        "optim.max_grad_norm=0",
        "optim.text.lr=1e30",
        "optim.text.warmup_steps=3",
    ]
    slow_start = ["optim.warmup_min_lr=0", "save_interval=1", "max_steps=9", "keep_checkpoints=1"]
    code, said = Forked([*tiny_run, *faster, *slow_start, f"out={out}"], tmp_path / "said").finish()
    assert code == 1 and "Traceback" not in said
    sentence = next(line for line in said.splitlines() if "is not finite" in line)
    assert "molmo_ds: Step " in sentence and "came from: grey " in sentence
    assert '"event": "fault", "reason": "Step ' in (out / "events.jsonl").read_text()
    assert not (out / "DONE").exists() and "NaN" not in (out / "log.jsonl").read_text()
    last = checkpoint.steps(out / "checkpoints")
    assert len(last) == 1
    assert all(weight.isfinite().all() for _, weight in checkpoint.read_full_state(last[0]))
