"""tools/bench/bench_ops.py on a machine without a GPU: counted columns only, and they are counted right."""

import pytest
import torch

from molmo_ds.testing.scripts import load

bench_ops = load("tools/bench", "bench_ops", "ops_cases")


def rows(table: str) -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line[:1] == "|"
    ]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def test_counted_floors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = bench_ops.main([])
    assert capsys.readouterr().out.startswith("No GPU here")
    found = rows(table)
    for row in found:
        assert {
            row[c] for c in ("eager", "compile", "library", "own", "floor/own", "rel error")
        } == {"-"}
    splice = next(r for r in found if r["op"] == "splice")
    # 16384 rows read and written and 7488 features read, of 3584 bf16 numbers
    assert float(splice["GB"]) == pytest.approx((2 * 16384 + 7488) * 3584 * 2 / 1e9, abs=5e-4)
    tree = next(r for r in found if r["op"] == "tree_attention")
    # per document 1400 * 1401 / 2 pairs in the prefix, 12 branches of 110 * 1400 + 110 * 111 / 2; 64 tokens of padding
    pairs = 6 * (1400 * 1401 // 2 + 12 * (110 * 1400 + 110 * 111 // 2)) + 64
    assert float(tree["TF"]) == pytest.approx(4 * 128 * 28 * pairs / 1e12, abs=5e-3)
    assert f"{pairs / 1e6:.1f} M" in tree["shape"]


def test_unknown_op() -> None:
    with pytest.raises(SystemExit):
        bench_ops.main(["softmax"])


def test_what_fails_ends_with_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    bench_ops.main(["swiglu", "--small"])
    assert "2 rows, none failed" in capsys.readouterr().out

    def broken(function: object, device: str) -> tuple[float, float]:
        raise RuntimeError("no clock")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(bench_ops, "milliseconds", broken)
        bench_ops.main(["swiglu", "--small"])
    assert str(ended.value).startswith("2 of 2 rows failed or missed a limit: swiglu fwd by torch")
    monkeypatch.setattr(bench_ops, "errors", lambda *_: "1.0e-03! / -")
    with pytest.raises(SystemExit) as ended:
        bench_ops.main(["swiglu", "--small"])
    assert str(ended.value).startswith("2 of 2 rows")
