"""One run under AdamW that changes its strategy at every step and its number of ranks in between: 4, 3, 1, 2, 4.

Whatever strategy wrote a checkpoint, it is read whole without ranks (tools/convert.py consolidate) bit by bit.
"""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import difference, family, fresh_groups, plain
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import checkpoint, checksums

LEGS = [  # ranks, and strategies of one step each
    (4, ["pipe_zero1_ep", "zero3_ep_tp", "zero2_ep"]),
    (3, ["zero3", "zero1"]),
    (1, ["zero2", "zero0"]),
    (2, ["pipe_zero1", "zero3_ep_offload", "zero3_ep", "zero3_sp_ep"]),
    (4, ["zero3_sp", "pipe_zero1", "zero3_tp", "zero3_tp_offload", "zero1"]),
]
STEPS = sum(len(names) for _, names in LEGS)
BATCH = 12  # divides by 1, 2, 3 and 4


def config(strategy: str, ranks: int) -> RunConfig:
    """Three learning rates, a decay of one component, clipping that acts.

    With a smaller eps, Adam would turn the rounding of gradients near zero into steps of full length.
    """
    path = f"ds_configs/{strategy}.json"
    size = read_strategy(path).data_parallel_size(ranks)
    sizes = {"global_batch": BATCH, "micro_batch": BATCH // size // (1 if BATCH // size % 2 else 2)}
    made = synthetic.adamw(
        model=family("olmoe"), strategy=path, max_steps=STEPS, keep_checkpoints=STEPS, **sizes
    )
    return replace(made, optim=replace(made.optim, eps=1e-4))


def leg(
    world: World, folder: str, names: list[str], done: int
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Losses of the steps after `done`, and the weights after each of them."""
    losses, weights = [], []
    for step, strategy in enumerate(names, done + 1):
        fresh_groups()
        run = config(strategy, world.size)
        engine = build_engine(run, world)
        lanes = engine.load(folder)
        assert engine.step == step - 1 and (lanes is None) == (step == 1)
        assert lanes is None or lanes == {lane: {"seen": step - 1} for lane in range(BATCH)}
        batches = synthetic.micro_batches(run, step, engine.data_rank, engine.data_size)
        losses.append(engine.train_step(batches)["loss"])
        share = BATCH // engine.data_size
        engine.save(folder, {engine.data_rank * share + i: {"seen": step} for i in range(share)})
        engine.close()
        weights.append(dict(engine.full_state()))
    return losses, weights


def test_a_run_that_changes_its_strategy_and_size(tmp_path: Path) -> None:
    losses: list[float] = []
    for ranks, names in LEGS:
        some, weights = run_ranks(leg, ranks, str(tmp_path), names, len(losses), timeout=400)[0]
        for step, (strategy, there) in enumerate(zip(names, weights, strict=True), len(losses) + 1):
            whole = dict(checkpoint.read_full_state(tmp_path / f"step-{step:08d}"))
            assert whole.keys() == there.keys(), strategy
            assert all(torch.equal(tensor, there[name]) for name, tensor in whole.items()), strategy
        losses += some
    expected, _, reference = plain(config("zero0", 1))
    assert len(losses) == STEPS
    loss, weight = difference((losses, weights[-1]), (expected, reference))
    # a wrong rate, decay or Adam step of a group is 1e-2 off
    assert loss <= 1e-5 and weight <= 1e-4, (loss, weight)


def without(path: Path, name: str) -> bytes:
    """The index of a checkpoint without the pieces of a parameter."""
    table = pq.read_table(path)
    shapes, _ = json.loads(table.schema.metadata[b"parameters"])
    return written(table.filter(pc.field("parameter") != list(shapes).index(name)))


def stateless(path: Path, name: str) -> bytes:
    """The index in which the pieces of a parameter have no state."""
    table = pq.read_table(path)
    shapes, kinds = json.loads(table.schema.metadata[b"parameters"])
    there = pc.equal(table["parameter"], list(shapes).index(name))
    column = pc.if_else(there, len(kinds), table["kind"])
    table = table.set_column(table.column_names.index("kind"), "kind", column)
    said = json.dumps([shapes, [*kinds, [["weight", "F32"]]]])
    return written(table.replace_schema_metadata({**table.schema.metadata, b"parameters": said}))


def written(table: pa.Table) -> bytes:
    """A parquet file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_what_is_missing_is_an_error(tmp_path: Path) -> None:
    """A checkpoint whose manifest agrees, but in which a piece or a state tensor is not described, is refused."""
    run_ranks(leg, 1, str(tmp_path), ["zero1"], 0)
    path = next(tmp_path.glob("step-*"))
    file = path / "index.parquet"
    whole = file.read_bytes()
    for change, said in ((without, "head.norm.weight"), (stateless, "no optimizer state")):
        file.write_bytes(whole)
        file.write_bytes(change(file, "head.norm.weight"))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][file.name] = checksums.facts_of(file)
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert checkpoint.what_is_wrong(path) is None
        with pytest.raises(AssertionError, match=said):
            run_ranks(leg, 1, str(tmp_path), ["zero2"], 1)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
