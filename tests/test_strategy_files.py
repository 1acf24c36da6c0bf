"""Every strategy file trains the quickstart's own shards as zero1.json does: the half of tools/compare_launches.py.

The tool launches each run as a user would; here the ranks are forked with the imports made, which saves half a minute a
cell. Losses, norms and counts of two steps of SGD are compared, dense and with experts, packed and not.
"""

import json
from pathlib import Path

import pytest

from molmo_ds.testing.cells import COMPARED, Cell, words
from molmo_ds.testing.ranks import Forked, free_port, rank_environment
from molmo_ds.testing.scripts import load

ROOT = Path(__file__).parents[1]
STEPS = 2
STRATEGIES = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
# those that treat experts in a way of their own; tools/bench/compare_launches.py trains them under every other too
EXPERTS = ("pipe_zero1", "zero2_ep", "zero3_ep", "zero3_ep_offload", "zero3_sp_ep")
CELLS = [
    *((2, strategy, "dense", "pack") for strategy in STRATEGIES if "_ep" not in strategy),
    *((2, strategy, "experts", "to_max") for strategy in EXPERTS),
    (2, "zero2", "dense", "to_128"),
    (4, "zero3_ep_tp", "experts", "pack"),
    (4, "pipe_zero1_ep", "experts", "to_128"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quickstart's shards (100 pictures a set) and its tokenizer."""
    quickstart = load("examples/digits", "quickstart", "compose", "report")
    job = quickstart.Job(tmp_path_factory.mktemp("quickstart"), ranks=2, steps=10, hard=False)
    quickstart.make_pictures(job)
    quickstart.make_tokenizer(job)
    return job.out


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory):
    """cell -> the lines of its log, made once."""
    folder = tmp_path_factory.mktemp("strategies")
    found: dict[tuple, list[dict]] = {}

    def lines(cell: Cell) -> list[dict]:
        if cell not in found:
            found[cell] = train(shards, cell, folder / "-".join(map(str, cell)))
        return found[cell]

    return lines


def train(shards: Path, cell: Cell, out: Path) -> list[dict]:
    """Train the cell on its ranks; AssertionError with what a rank said if one does not end well."""
    ranks = cell[0]
    port = free_port()
    said = [out.with_name(f"{out.name}-{rank}.txt") for rank in range(ranks)]
    started = [
        Forked(words(shards, cell, out, STEPS), said[rank], rank_environment(rank, ranks, port))
        for rank in range(ranks)
    ]
    for process in started:
        code, output = process.finish(timeout=500)  # DeepSpeed may compile its op for NVMe first
        assert code == 0, output[-3000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_trains_as_zero1_does(run, cell: Cell) -> None:
    ranks, _, model, packing = cell
    measure = run((ranks, "zero1", model, packing))
    ours = run(cell)
    assert len(ours) == len(measure) == STEPS
    for mine, theirs in zip(ours, measure):
        for key in COMPARED:
            assert mine[key] == pytest.approx(theirs[key], rel=5e-6), (mine["step"], key)
