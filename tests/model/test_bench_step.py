"""tools/bench/bench_step.py times what it says: equal learnt tokens as trees and alone, and steps that run."""

from pathlib import Path

import pytest
import torch

from molmo_ds import presets
from molmo_ds.testing.scripts import load

bench_step = load("tools/bench", "bench_step", "step_batches", "stepper")


def test_trees_and_single_annotations_learn_the_same_tokens() -> None:
    sides = bench_step.tree_batches(presets.tiny(), 1, pool=12, annotations=4, rows=2, tokens=384)
    packed, alone, padded = sides
    learnt = [sum(int((b.loss_weights > 0).sum()) for b in side) for side in sides]
    assert learnt[0] == learnt[1] == learnt[2] > 0
    assert sum(len(b.input_ids) for b in alone) == sum(len(b.images) for b in packed)
    pictures = sum(len(b.images) for b in packed)
    assert sum(len(b.images) for b in padded) == 4 * pictures
    assert sum(len(b.input_ids) for b in padded) == 4 * pictures
    # the last sequence is as full as the first
    assert len(packed) == 2
    assert min(float((b.document_ids > 0).float().mean()) for b in packed) > 0.97


def test_a_row_for_each_tree_and_for_each_annotation(capsys: pytest.CaptureFixture) -> None:
    bench_step.main(
        ["--preset=tiny", "--tree", "--pool=8", "--sequences=1", "--crops=1", "--steps=1"]
    )
    lines = capsys.readouterr().out.splitlines()[1:]
    # with our ops and with plain ones
    assert [line[12:38].rstrip() for line in lines] == 2 * list(bench_step.SIDES)


def test_the_reference_step_has_its_shape() -> None:
    config = presets.reference_cpu()
    (batch,) = bench_step.reference_batches(config, 2, 1024, 2)
    # no padding
    assert batch.input_ids.shape == (2, 1024) and bool((batch.document_ids == 1).all())
    assert (batch.loss_weights > 0).sum(1).tolist() == [600, 600]
    assert len(batch.images) == 4 and bool((batch.image_positions >= 0).all())
    with torch.device("meta"):
        assert sum(p.numel() for p in bench_step.Molmo(config).parameters()) == 11_508_480


def test_main(capsys: pytest.CaptureFixture) -> None:
    sizes = ["--sequences=1", "--tokens=64", "--crops=1", "--steps=1"]
    bench_step.main(["--preset=tiny", "--device=cpu", *sizes])
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 3 and "tokens per CPU-second" in lines[1] and lines[2].startswith("ops torch")
    )


def table(text: str) -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_end_to_end_table_of_a_gpu_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr("molmo_ds.engine.compiled.BACKEND", backend)
    # the first version that is tried does not fit into memory, nor does it with its vision tower computed again
    tried: list[str] = []
    measure = bench_step.measure

    def measured(*args) -> bench_step.Measured:
        tried.append(args[-1])
        if len(tried) < 3:
            raise torch.OutOfMemoryError("too large")
        return measure(*args)

    monkeypatch.setattr(bench_step, "measure", measured)
    out = tmp_path / "table.md"
    bench_step.main(
        ["--end-to-end", "--small", "--device", "cpu", "--steps", "1", "--out", str(out)]
    )
    printed = capsys.readouterr().out
    rows = table(printed)
    assert printed.endswith(out.read_text()) and len(rows) == 2 * len(bench_step.VERSIONS) == 12
    assert (
        tried == ["none", "vision", "full"] + ["none"] * 11 and rows[0]["computed again"] == "full"
    )
    assert compiled and bench_step.dispatch._forced is None
    for row in rows:
        seconds = float(row["ms a step"]) / 1e3
        annotations = 8 if row["step"].startswith("2 x 64") else 12
        assert float(row["annotations/s"]) == pytest.approx(annotations / seconds, rel=0.01)
        # prefix of 9 tokens; 4 branches of 13 in 64, or two pictures with 6 branches of 11 in 160
        trees, alone = (2 * 61, 8 * 22) if annotations == 8 else (2 * 75, 12 * 20)
        tokens = alone if row["version"].startswith("padded") else trees
        assert float(row["tokens/s"]) == pytest.approx(tokens / seconds, rel=0.01)
        assert row["MFU"] == row["waits"] == "-"
    plain = float(rows[0]["ms a step"])
    assert all(
        float(r["times plain, eager"]) == pytest.approx(plain / float(r["ms a step"]), abs=0.01)
        for r in rows[:6]
    )


def test_without_a_gpu_the_end_to_end_table_says_so(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: see the test above")
    bench_step.main(["--end-to-end", "--only", "2304"])
    printed = capsys.readouterr().out
    rows = table(printed)
    assert "No GPU here: nothing is measured" in printed and len(rows) == 6
    assert all(row[c] == "-" for row in rows for c in ("ms a step", "tokens/s", "MFU", "waits"))
    # 4 rows of 1873 + 4 * 107 tokens (72 of an answer), which see prefix and own branch; as many crops as 4 * 13
    pairs = 4 * (1873 * 1874 // 2 + 4 * (107 * 1873 + 107 * 108 // 2))
    seen = (52, 52 * 144, 52 * 576)  # crops, all of their windows, of 4 patches each
    wanted = bench_step.flops_of_step(presets.qwen2_1b5(), 4 * 2301, 4 * 4 * 72, pairs, *seen)
    assert float(rows[0]["TF"]) == pytest.approx(wanted / 1e12, abs=0.1)
