"""What the tools of tools/bench say must go over the network, and what the kernel counts that goes."""

from pathlib import Path

import pytest

from molmo_ds.testing import lab
from molmo_ds.testing.scripts import load

bench_network = load("tools/bench", "bench_network")
bench_answer_network = load("tools/bench", "bench_answer_network")
Cell = bench_network.Cell

pytestmark = pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "it can run")


def test_bytes_are_those_of_theory(laboratory: lab.Lab, tmp_path: Path) -> None:
    cells = [Cell(name, 1, 1) for name in ("zero1", "zero3", "zero3_tp", "zero3_ep", "pipe_zero1")]
    cells.append(Cell("pipe_dualpipev", 1, 4))
    seen = bench_network.run(laboratory, cells, "10gbit", tmp_path)
    assert list(seen) == cells
    for cell in cells:
        expected = bench_network.theory(cell, cell.config(tmp_path))
        # headers and very small messages come on top
        assert expected < seen[cell].sent < 1.06 * expected, cell


@pytest.mark.everything
@pytest.mark.parametrize("name", bench_answer_network.LAYOUTS)
def test_bytes_of_answering(name: str, laboratory: lab.Lab, tmp_path: Path) -> None:
    """The payloads alone are counted in every run of the suite, by tests/infer/test_layouts.py."""
    size = bench_answer_network.Size(width=512, layers=4)
    seen = bench_answer_network.run(laboratory, name, size, tmp_path)
    must = bench_answer_network.theory(bench_answer_network.LAYOUTS[name], size, seen[0].tokens)
    assert must < sum(host.sent for host in seen) <= 1.02 * must
