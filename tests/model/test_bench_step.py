"""tools/bench_step.py times what it says: equal learnt tokens as trees and alone, and a step that runs."""

import sys
from pathlib import Path

import pytest
import torch

from molmo_ds import presets

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import bench_step  # noqa: E402


def test_trees_and_single_annotations_learn_the_same_tokens() -> None:
    packed, padded = bench_step.tree_batches(presets.tiny(), 1, pictures=3, annotations=4)
    learnt = [sum(int((b.loss_weights > 0).sum()) for b in side) for side in (packed, padded)]
    assert learnt[0] == learnt[1] > 0
    assert sum(len(b.images) for b in padded) == 4 * sum(len(b.images) for b in packed) == 12
    assert sum(len(b.input_ids) for b in padded) == 12


def test_the_reference_step_has_its_shape() -> None:
    config = presets.reference_cpu()
    (batch,) = bench_step.reference_batches(config, 2, 1024, 2)
    assert batch.input_ids.shape == (2, 1024) and bool((batch.document_ids == 1).all())  # no padding
    assert (batch.loss_weights > 0).sum(1).tolist() == [600, 600]
    assert len(batch.images) == 4 and bool((batch.image_positions >= 0).all())
    with torch.device("meta"):
        assert sum(p.numel() for p in bench_step.Molmo(config).parameters()) == 11_508_480


def test_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    arguments = "--preset tiny --sequences 1 --tokens 64 --crops 1 --steps 1 --device cpu"
    monkeypatch.setattr(sys, "argv", ["bench_step.py", *arguments.split()])
    bench_step.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "tokens per CPU-second" in lines[1] and lines[2].startswith("ops torch")
