"""tools/bench/bench_answers.py: equal answers on both sides, and the counts that it prints."""

import pytest

from molmo_ds.testing.scripts import load

bench_answers = load("tools/bench", "bench_answers", "machine_limit")


def test_main(capsys: pytest.CaptureFixture) -> None:
    bench_answers.main(["slots", "trees", "--tiny"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    # drawn lengths 15 24 18 15 | 11 20 11 42: one step less than tokens each, or the longest of four for all four
    assert rows[0][0].endswith("148 useful row-steps of decoding") and rows[0][1].endswith(
        " 148 row-steps"
    )
    assert rows[0][2].endswith(f" {4 * 23 + 4 * 41} row-steps")
    questions = sum(8 + i * 5 % 14 for i in range(20))
    assert rows[2][1].endswith(f" {4 * 17 + questions} tokens prefilled")
    assert rows[2][2].endswith(f" {20 * 17 + questions} tokens prefilled")


def test_unknown_measurement(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        bench_answers.main(["speed"])
    assert (
        "there is no measurement 'speed'; name slots, trees, transformers."
        in capsys.readouterr().err
    )
